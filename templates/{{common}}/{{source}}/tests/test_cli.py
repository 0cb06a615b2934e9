"""A command line becomes settings, an exit code and a message; `--help` loads no JAX."""

import errno
import inspect
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from .. import cli
from ..config import PRESETS, Config
from ..errors import Exit, UserError
from ..records import store
from ..run_config import RETIRED, to_dict

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


def test_commands_follow_one_another_until_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def command(name: str, code: int) -> None:
        monkeypatch.setitem(COMMANDS, name, lambda: done.append(name) or code)

    for name, code in (("sound", Exit.DONE), ("hung", Exit.HUNG)):
        command(name, code)
    monkeypatch.setattr(cli, "find_commands", lambda: COMMANDS)
    assert cli.run(["sound", "--", "sound"]) == (Exit.DONE, "")
    assert cli.run(["sound", "--", "hung", "--", "sound"]) == (Exit.HUNG, "")
    assert done == ["sound", "sound", "sound", "hung"]
    assert cli.run(["sound", "--", "sounded"])[0] == Exit.USER  # before anything has run
    assert len(done) == 4


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_its_own_defaults(name: str) -> None:
    command = COMMANDS[name]
    needed = [
        word
        for parameter in inspect.signature(command).parameters.values()
        if parameter.default is parameter.empty and parameter.name not in cli._settings_of(command)
        for word in (f"--{parameter.name.replace('_', '-')}", "x")
    ]
    assert callable(cli.parse([name, *needed]))


def config_of(*argv: str) -> Config:
    return cli.parse([TRAIN, *argv]).keywords["config"]


def test_a_run_goes_on_with_the_settings_that_it_began_with(tmp_path: Path) -> None:
    begun = replace(PRESETS[LAST]().run, run_dir=str(tmp_path), steps=33, seed=5)
    begun = replace(PRESETS[LAST](), run=begun)
    folder = ["--run-dir", str(tmp_path)]
    assert config_of(*folder).run == replace(PRESETS[PRESET]().run, run_dir=str(tmp_path))
    store.write_json(tmp_path / "config.json", {"command": "x", "config": to_dict(begun)})
    assert config_of(*folder) == config_of(f"--run_dir={tmp_path}") == begun
    assert config_of("--steps", "44", *folder) == replace(begun, run=replace(begun.run, steps=44))
    # A preset that is named is what counts.
    assert config_of(PRESET, *folder).run == replace(PRESETS[PRESET]().run, run_dir=str(tmp_path))
    (tmp_path / "config.json").rename(tmp_path / "mine.json")
    assert config_of("--config", str(tmp_path / "mine.json"), "--seed", "6").run.seed == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"No such file.*names of settings"),
        ("{", r"mine.json: .*JSON"),
        ("[1]", r"mine.json: .*JSON"),
        (
            '{"run": {"stepz": 4}}',
            r"with run.stepz\nexpected: names of settings .*did you mean run.steps",
        ),
        ('{"run.steps": 0}', r"--steps 0\nexpected: more than 0"),
    ],
)
def test_a_file_of_settings_that_cannot_be_taken(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "mine.json").write_text(content)
    with pytest.raises(UserError, match=f"(?s){words}"):
        config_of("--config", str(tmp_path / "mine.json"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([PRESET, "--config", "x.json"], "expected: one of them"),
        (["--config"], "expected: --config VALUE"),
        (["--config="], "JSON"),
        (["--steps", "3", "--config", "nowhere/x.json"], "nowhere/x.json"),
        (["--steps", "0"], "--steps 0\nexpected: more than 0"),
    ],
)
def test_command_lines_that_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        config_of(*argv)


def test_the_help_of_a_command_shows_where_its_settings_come_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sources = f"{TRAIN} [PRESET | --config FILE]"
    for argv, out in ((["--help"], True), (["--stepz", "3"], False)):
        with pytest.raises(SystemExit):
            cli.parse([TRAIN, *argv])
        shown = " ".join(" ".join(capsys.readouterr()).split())
        assert (sources in shown) is out  # an error advises a command that can be typed
        assert all(name in shown for name in PRESETS) is out


def test_a_start_says_where_its_settings_are_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_json(tmp_path / "config.json", {"config": to_dict(PRESETS[LAST]())})
    for argv, origin in (
        ([], f"preset {PRESET}"),
        ([LAST], f"preset {LAST}"),
        (["--run-dir", str(tmp_path)], str(tmp_path / "config.json")),
        (["--config", str(tmp_path / "config.json")], str(tmp_path / "config.json")),
        (["--run-dir", str(tmp_path / "tpyo")], f"preset {PRESET}; {tmp_path}/tpyo has not begun"),
    ):
        caplog.clear()
        with caplog.at_level("INFO"):
            config_of(*argv)
        assert caplog.messages == [f"settings: {origin}"]


def test_a_file_may_hold_what_the_code_does_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RETIRED, "run.thinning", 1)
    for value, taken in ((1, True), (2, False)):
        store.write_json(tmp_path / "mine.json", {"run.thinning": value})
        context = nullcontext() if taken else pytest.raises(UserError, match=r"run\.thinning")
        with context:
            config_of("--config", str(tmp_path / "mine.json"))


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
        (OSError(errno.ENOTDIR, "Not a directory", "/x"), 2, "expected: a path that can"),
        (
            FileExistsError(errno.EEXIST, "File exists", "/x"),
            2,
            "do:    look at that path, or give",
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
    assert [*map(int, Exit)] == [0, 1, 2, 3, 42, 43, 44, 130]  # schedulers know them
