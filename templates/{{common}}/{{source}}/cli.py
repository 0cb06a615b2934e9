"""The console script: finds the command, parses its settings, turns its end into an exit code.

Imports no JAX, so that `--help` is instant.
"""

import difflib
import errno
import functools
import importlib
import inspect
import itertools
import logging
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any

import tyro

from . import commands
from .config import PRESETS, Config, validate
from .console import flush_output, open_console
from .errors import Exit, UserError
from .records import store
from .run_config import (
    RETIRED,
    check_device_count,
    check_given,
    check_settings,
    flatten,
    from_dict,
    to_dict,
)

# Of the machine or of a path, not of the program: full, read-only, forbidden, broken, too many
# open files; no folder, too long.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
DISK_ERRORS |= {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EFBIG}
DISK_ERRORS |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
CONFIG = "--config"

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process."""
    open_console()
    # Before a run listens, and after: nothing is lost then, and the same command goes on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(Exit.PREEMPTED))
    ours = logging.getLogger(__package__)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # libraries add handlers to the root logger
    if logging.lastResort:
        logging.lastResort.setLevel(logging.INFO)  # Python's default handler, on stderr
        ours.addHandler(logging.lastResort)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's errors are reported by us
    code, reason = run(sys.argv[1:] if argv is None else list(argv))
    lost = flush_output()
    if lost and lost.errno != errno.EPIPE and code == Exit.DONE:
        code, reason = Exit.USER, f"standard output: {lost}"
        print(f"\n{reason}; the files of a run are complete", file=sys.stderr)
    if "jax" in sys.modules:
        from .runtime.distributed import end_together

        end_together(code, reason)
    sys.exit(code)


def run(argv: list[str]) -> tuple[int, str]:
    """Exit code of a command line, and the reason of a failure, which has been printed.

    `--` stands between commands, each of which runs where the one before it has ended with 0.
    """
    try:
        words = [list(part) for is_end, part in itertools.groupby(argv, "--".__eq__) if not is_end]
        commands = [parse(each) for each in words or [[]]]
        return next(filter(None, (command() for command in commands)), Exit.DONE), ""
    except UserError as error:
        shown: object = error
    except KeyboardInterrupt:
        return Exit.INTERRUPTED, "interrupted by the user"
    except SystemExit as end:  # tyro has printed the help, or what is wrong with an option
        if isinstance(end.code, str):  # of a library
            print(end.code, file=sys.stderr)
            return Exit.BUG, end.code
        return int(end.code or 0), ""
    except OSError as error:
        if isinstance(error, BrokenPipeError) and flush_output("\n"):
            return Exit.DONE, ""  # who reads our output, such as `head`, has all that it wants
        if error.errno not in DISK_ERRORS:
            traceback.print_exc()
            return Exit.BUG, repr(error)
        shown = UserError(
            got=error,
            expected="a path that can be read and written, with room",
            do="look at that path, or give another one; the same command goes on",
        )
    except Exception as error:
        traceback.print_exc()
        return Exit.BUG, repr(error)
    print(f"\n{shown}", file=sys.stderr)
    return Exit.USER, str(shown).replace("\n", "; ")


def parse(argv: list[str]) -> functools.partial[int]:
    """The command of a command line with its settings bound."""
    if wrong := [word for word in argv if _is_torn(word)]:
        raise UserError(
            got=f"a command line with {wrong[0]!a}",
            expected="UTF-8",
            do="write it in UTF-8; a file with another name has to be renamed",
        )
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        return functools.partial(_usage)
    known = find_commands()
    command = known.get(name)
    if command is None:
        raise UserError(
            got=f"command {name!r}",
            expected=_near(name, list(known)),
            do=f"{_program()} --help lists the commands",
        )
    prog, wanted = f"{_program()} {name}", _settings_of(command)
    if not wanted:
        return tyro.cli(_binder(command, {}), args=rest, prog=prog)
    base, origin, rest = find_base(rest, "config" in wanted)
    if {"-h", "--help"} & {*rest}:  # an error would show the whole of it too
        prog += f" [PRESET | {CONFIG} FILE]"
    about = f"PRESET, the settings that options change, is one of {', '.join(PRESETS)}. "
    about += f"{CONFIG} FILE takes those of a config.json"
    if "config" in wanted:
        about += ", its --run-dir too; --run-dir DIR alone those of that run, if it has begun"
    bound = tyro.cli(
        _binder(command, {name: _part(base, name, of) for name, of in wanted.items()}, base),
        args=rest,
        prog=prog,
        description=f"{inspect.getdoc(command)}\n\n{about}.",
    )
    log.info("settings: %s", origin)
    return bound


def find_base(rest: list[str], of_run: bool = True) -> tuple[Config, str, list[str]]:
    """The settings that a command line starts from, where they are from, and the other words.

    of_run: whether they may be those of the run in --run-dir.
    """
    first = next(iter(PRESETS))
    default = check_settings(PRESETS[first]())
    word = rest[0] if rest and not rest[0].startswith("-") else None
    file, rest = _take_option(rest[word is not None :], CONFIG)
    if word is not None and word not in PRESETS:
        raise UserError(
            got=f"preset {word!r}",
            expected=_near(word, list(PRESETS)),
            do="presets are functions in config.py; add one, or override fields: --steps 20",
        )
    if word is not None and file is not None:
        raise UserError(
            got=f"the preset {word} and {CONFIG} {file}",
            expected="one of them",
            do="leave one out; options change single settings of the other",
        )
    if word is not None:
        return check_settings(PRESETS[word]()), f"preset {word}", rest
    if file is not None:
        return read_config(store.place(file), default), file, rest
    folder = _take_option(rest, "--run-dir")[0] if of_run else None
    if folder is None:
        return default, f"preset {first}", rest
    begun = store.place(folder) / "config.json"
    if store.exists(begun):
        return read_config(begun, default), str(begun), rest
    return default, f"preset {first}; {folder} has not begun", rest


def read_config(path: PurePath, default: Config) -> Config:
    """The settings of a `config.json`; where it has none, those of `default`."""
    try:
        found = store.read_json(path)
        flat = flatten(found.get("config", found))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            got=f"{path}: {error}",
            expected="JSON as in the config.json of a run: the names of settings and their values",
            do=f"correct the file, or name another one with {CONFIG}",
        ) from error
    known = to_dict(default)
    unknown = [n for n in flat if n not in known and (n, flat[n]) not in RETIRED.items()]
    if unknown:
        near = ", ".join(_near(name, list(known), listed=False) for name in unknown)
        raise UserError(
            got=f"{path} with {', '.join(unknown)}",
            expected=f"names of settings{near}",
            do="correct them in the file, or delete their lines",
        )
    return check_settings(from_dict(default, flat))


@functools.cache
def find_commands() -> dict[str, Callable[..., int]]:
    """Command -> its function, which has the name of its module in `commands`."""
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    modules = {
        n: importlib.import_module(f"{commands.__name__}.{n}") for n in names if n != "tests"
    }
    return {n.replace("_", "-"): getattr(module, n) for n, module in modules.items()}


def _settings_of(command: Callable[..., int]) -> dict[str, Any]:
    """The parameters of a command that are the configuration, or a part of it such as `data`."""
    parts = {field.name for field in fields(Config)} | {"config"}
    found = inspect.signature(command).parameters.items()
    return {name: parameter.annotation for name, parameter in found if name in parts}


def _part(config: Config, name: str, of_type: Any) -> Any:
    """The configuration or a part of it; of a part, the fields that a command asks for."""
    if name == "config":
        return config
    part = getattr(config, name)
    return of_type(**{field.name: getattr(part, field.name) for field in fields(of_type)})


def _with_parts(config: Config, parts: dict[str, Any]) -> Config:
    """The configuration with the values of parts, which may lack fields."""
    whole = {name: replace(getattr(config, name), **vars(part)) for name, part in parts.items()}
    return replace(config, **whole)


def _binder(
    command: Callable[..., int], parts: dict[str, Any], base: Config | None = None
) -> Callable[..., functools.partial[int]]:
    """A function of the same signature that returns the call with its settings bound.

    `parts` are the defaults of those parameters that are settings; what comes back is validated.
    """

    @functools.wraps(command)
    def bind(**given: Any) -> functools.partial[int]:
        check_device_count()
        check_given(command, {n: value for n, value in given.items() if n not in parts})
        if base is not None:
            validate(given.get("config") or _with_parts(base, {p: given[p] for p in parts}))
        return functools.partial(command, **given)

    bind.__signature__ = inspect.signature(functools.partial(command, **parts))  # type: ignore
    return bind


def _is_torn(word: str) -> bool:
    """Whether Python has put surrogates in the place of bytes that are no UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for letter in word)


def _take_option(words: list[str], name: str) -> tuple[str | None, list[str]]:
    """The last value of an option, and the words without it."""
    value, rest, ahead = None, [], iter(words)
    for word in ahead:
        before, equals, after = word.partition("=")
        if before.replace("_", "-") != name:  # tyro takes both
            rest.append(word)
        elif (value := after if equals else next(ahead, None)) is None:
            raise UserError(got=f"{name} alone", expected=f"{name} VALUE", do="add the value")
    return value, rest


def _usage() -> int:
    print(f"usage: {_program()} COMMAND [PRESET] [OPTIONS]\n\ncommands:")
    for name, command in find_commands().items():
        print(f"  {name:16} {(command.__doc__ or '').splitlines()[0]}")
    print(f"\npresets: {', '.join(PRESETS)}\n{_program()} COMMAND --help lists its options")
    return Exit.DONE


def _near(word: str, known: list[str], *, listed: bool = True) -> str:
    close = difflib.get_close_matches(word, known, n=3)
    names = ", ".join(known) if listed else ""
    return names + (f" (did you mean {' or '.join(close)}?)" if close else "")


def _program() -> str:
    return os.path.basename(sys.argv[0]) or str(__package__)
