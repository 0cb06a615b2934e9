"""The console script: finds the command, parses its settings, turns its end into an exit code.

Imports no JAX, so that `--help` is instant.
"""

import dataclasses
import difflib
import errno
import functools
import importlib
import inspect
import logging
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from . import commands
from .config import PRESETS, Config, validate
from .errors import Exit, UserError
from .records import store
from .run_config import check_settings, flatten, from_dict, to_dict

# Of the machine, not of the program: full, read-only, forbidden, broken, too many open files.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
DISK_ERRORS |= {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}
CONFIG = "--config"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process."""
    ours = logging.getLogger(__package__)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # libraries add handlers to the root logger
    if logging.lastResort:
        logging.lastResort.setLevel(logging.INFO)  # Python's default handler, on stderr
        ours.addHandler(logging.lastResort)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's errors are reported by us
    code, reason = run(sys.argv[1:] if argv is None else list(argv))
    if reason and "jax" in sys.modules:
        from .runtime.distributed import end_together

        end_together(code, reason)
    sys.exit(code)


def run(argv: list[str]) -> tuple[int, str]:
    """Exit code of a command line, and the reason of a failure, which has been printed."""
    try:
        return parse(argv)(), ""
    except UserError as error:
        shown: object = error
    except KeyboardInterrupt:
        return Exit.INTERRUPTED, "interrupted by the user"
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            traceback.print_exc()
            return Exit.BUG, repr(error)
        shown = UserError(
            got=error,
            expected="a disk that can be read and written",
            do="look at that path; the same command goes on",
        )
    except Exception as error:
        traceback.print_exc()
        return Exit.BUG, repr(error)
    print(f"\n{shown}", file=sys.stderr)
    return Exit.USER, str(shown).replace("\n", "; ")


def parse(argv: list[str]) -> functools.partial[int]:
    """The command of a command line with its settings bound."""
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
    base, rest = find_base(rest)
    names = ", ".join(PRESETS)
    about = (
        f"PRESET, the settings that options change, is one of {names}. {CONFIG} FILE takes those"
    )
    about += " of a config.json; --run-dir DIR alone those of that run, if it has begun."
    return tyro.cli(
        _binder(command, {part: _part(base, part) for part in wanted}, base),
        args=rest,
        prog=f"{prog} [PRESET | {CONFIG} FILE]",
        description=f"{inspect.getdoc(command)}\n\n{about}",
    )


def find_base(rest: list[str]) -> tuple[Config, list[str]]:
    """The settings that a command line starts from, and its words without what names them."""
    default = check_settings(PRESETS[next(iter(PRESETS))]())
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
        return check_settings(PRESETS[word]()), rest
    if file is not None:
        return read_config(Path(file), default), rest
    begun = Path(_take_option(rest, "--run-dir")[0] or os.devnull) / "config.json"
    return read_config(begun, default) if store.exists(begun) else default, rest


def read_config(path: Path, default: Config) -> Config:
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
    if unknown := [name for name in flat if name not in known]:
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


def _settings_of(command: Callable[..., int]) -> list[str]:
    """The parameters of a command that are the configuration, or a part of it such as `data`."""
    parts = {field.name for field in dataclasses.fields(Config)} | {"config"}
    return [name for name in inspect.signature(command).parameters if name in parts]


def _part(config: Config, name: str) -> Any:
    return config if name == "config" else getattr(config, name)


def _binder(
    command: Callable[..., int], parts: dict[str, Any], base: Config | None = None
) -> Callable[..., functools.partial[int]]:
    """A function of the same signature that returns the call with its settings bound.

    `parts` are the defaults of those parameters that are settings; what comes back is validated.
    """

    @functools.wraps(command)
    def bind(**given: Any) -> functools.partial[int]:
        if base is not None:
            validate(
                given.get("config") or dataclasses.replace(base, **{p: given[p] for p in parts})
            )
        return functools.partial(command, **given)

    bind.__signature__ = inspect.signature(functools.partial(command, **parts))  # type: ignore
    return bind


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
