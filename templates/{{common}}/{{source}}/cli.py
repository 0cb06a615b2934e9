"""The console script: finds the command, parses its settings, turns its end into an exit code.

Imports no JAX, so that `--help` is instant.
"""

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

import tyro

from . import commands
from .config import PRESETS
from .errors import Exit, UserError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


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
        shown = UserError(got=error, expected="room and the right to write", do="correct that path")
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
    settings = functools.partial(command)
    if "config" in inspect.signature(command).parameters:
        preset = next(iter(PRESETS))
        if rest and not rest[0].startswith("-"):
            preset, *rest = rest
        if preset not in PRESETS:
            raise UserError(
                got=f"preset {preset!r}",
                expected=_near(preset, list(PRESETS)),
                do="presets are functions in config.py; add one, or override fields: --steps 20",
            )
        settings = functools.partial(command, config=PRESETS[preset]())
    return tyro.cli(_binder(settings), args=rest, prog=f"{_program()} {name}")


@functools.cache
def find_commands() -> dict[str, Callable[..., int]]:
    """Command -> its function, which has the name of its module in `commands`."""
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    modules = {
        n: importlib.import_module(f"{commands.__name__}.{n}") for n in names if n != "tests"
    }
    return {n.replace("_", "-"): getattr(module, n) for n, module in modules.items()}


def _binder(command: functools.partial[int]) -> Callable[..., functools.partial[int]]:
    """A function of the same signature that returns the call with its settings bound."""

    @functools.wraps(command.func)
    def bind(**settings: object) -> functools.partial[int]:
        return functools.partial(command.func, **settings)

    bind.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    return bind


def _usage() -> int:
    print(f"usage: {_program()} COMMAND [PRESET] [OPTIONS]\n\ncommands:")
    for name, command in find_commands().items():
        print(f"  {name:16} {(command.__doc__ or '').splitlines()[0]}")
    print(f"\npresets: {', '.join(PRESETS)}\n{_program()} COMMAND --help lists its options")
    return Exit.DONE


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3)
    return f"{', '.join(known)}" + (f" (did you mean {' or '.join(close)}?)" if close else "")


def _program() -> str:
    return os.path.basename(sys.argv[0]) or str(__package__)
