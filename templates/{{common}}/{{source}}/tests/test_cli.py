"""A command line becomes settings, an exit code and a message; `--help` loads no JAX."""

import errno
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .. import cli
from ..config import PRESETS
from ..errors import Exit, UserError

COMMANDS = cli.find_commands()
FOLDER = Path(__file__).parents[1]
# The first command that takes settings, by whatever name this kind of project has for it.
TRAIN = next(name for name, fn in COMMANDS.items() if "config" in inspect.signature(fn).parameters)
PRESET, *_, LAST = PRESETS


def test_overrides_win_over_the_preset() -> None:
    assert cli.parse([TRAIN]).keywords["config"] == PRESETS[PRESET]()
    assert cli.parse([TRAIN, "--steps", "20"]).keywords["config"].run.steps == 20
    for name in (PRESET, LAST):
        config = cli.parse([TRAIN, name, "--mesh.fsdp", "8", "--seed", "7"]).keywords["config"]
        assert (config.mesh.fsdp, config.run.seed) == (8, 7)
        assert config.run.steps == PRESETS[name]().run.steps


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([TRAIN, "--stepz", "20"], "--steps"),
        ([TRAIN, PRESET, "--mesh.fdsp", "8"], "--mesh.fsdp"),
        ([TRAIN, "--steps", "many"], "int"),
        ([TRAIN[:-1] + "q"], f"did you mean {TRAIN}"),
        ([TRAIN, PRESET + "x"], f"did you mean {PRESET}"),
    ],
)
def test_unknown_words_name_near_ones(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:  # tyro ends by itself
        sys.exit(cli.run(argv)[0])
    assert end.value.code == Exit.USER
    assert words in " ".join(capsys.readouterr().err.split())


def test_help_lists_everything_and_imports_no_jax(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == cli.run(["--help"]) == (Exit.DONE, "")
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*COMMANDS, *PRESETS))
    code = f"import sys, {FOLDER.name}.cli, {FOLDER.name}.config; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UserError(got="a", expected="b", do="c"), 2, "got:      a\nexpected: b\nto do:    c"),
        (
            OSError(errno.ENOSPC, "No space left", "/x"),
            2,
            "got:      [Errno 28] No space left: '/x'",
        ),
        (OSError(errno.EPIPE, "broken"), 1, "Traceback"),
        (ValueError("ours"), 1, "Traceback"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_code(
    error: BaseException,
    code: int,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "fail", fail)
    found, reason = cli.run(["fail"])
    err = capsys.readouterr().err
    assert found == code
    assert reason
    assert shown in err
    assert ("Traceback" in err) is (code == Exit.BUG)
    assert [*map(int, Exit)] == [0, 1, 2, 42, 43, 130]  # schedulers know them
