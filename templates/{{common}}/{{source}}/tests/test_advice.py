"""What messages and the README tell a user to type is there, and does what it is said to do."""

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from .. import cli
from ..config import PRESETS, Config
from ..errors import Exit, UserError
from ..records import store
from ..records.trackers import make_trackers
from ..run_config import MeshConfig, to_dict
from ..runtime.sharding import make_mesh

FOLDER = Path(__file__).parents[1]
COMMANDS = cli.find_commands()
TRAIN = next(name for name, fn in COMMANDS.items() if "config" in inspect.signature(fn).parameters)
# Options of other programs that messages, comments or the README name: git, uv, pytest, Docker.
FOREIGN = {
    *("page", "card", "ink", "soft", "line"),  # colours of the report's style
    *(
        "build-arg",
        "cache-clear",
        "defaults",
        "error-unmatch",
        "extra",
        "format",
        "group",
        "local-dir",
        "help",
        "logdir",
        "name-only",
    ),
    *("porcelain", "refs", "relative", "skip-answered", "tags", "upgrade-package", "with"),
    *("xla_dump_to", "xla_gpu_deterministic_ops"),
    *("topology", "slices", "to"),  # of `preflight` and `export`, which not every kind has
    "raise",  # of `simulate`: no parameter of Python can have that name
}
# Modules that write for other programs: Slurm, gcloud, kubectl, SkyPilot.
RENDERING = {"slurm.py", "queued.py", "skypilot.py", "rendered.py"}
# And those that advise what not every kind has.
RENDERING |= set() if "prepare" in COMMANDS else {"prepared.py", "given.py"}
OPTION = re.compile(r"(?<![\w-])--([a-z][\w.-]*[a-z0-9])")


def own_options() -> set[str]:
    """Every option of every command, and the names of groups such as `mesh`."""
    settings = [name.removeprefix("run.").replace("_", "-") for name in to_dict(Config())]
    found = {"config", *settings, *(name.partition(".")[0] for name in settings)}
    for command in COMMANDS.values():
        for name, parameter in inspect.signature(command).parameters.items():
            hint = getattr(parameter.annotation, "__value__", parameter.annotation)
            of_type = (*typing.get_args(hint), hint)[0]  # of an `Annotated`
            group = dataclasses.fields(of_type) if dataclasses.is_dataclass(of_type) else ()
            found |= {n.replace("_", "-") for n in (name, *(field.name for field in group))}
    return found


def advising() -> Iterator[Path]:
    """Modules whose texts are for the user of this project."""
    for path in FOLDER.rglob("*.py"):
        if "tests" not in path.relative_to(FOLDER).parts and path.name not in RENDERING:
            yield path


def texts() -> Iterator[tuple[str, str]]:
    """Where it stands, and each text in the sources (the parts of f-strings too) and the README."""
    for path in advising():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.name}:{node.lineno}", node.value
    for readme in FOLDER.parents[1].glob("README.md"):
        yield readme.name, readme.read_text("utf-8")


def test_options_that_are_named_exist() -> None:
    known = own_options() | FOREIGN
    named = [(place, name) for place, text in texts() for name in OPTION.findall(text)]
    assert len(named) > 20
    assert [(place, name) for place, name in named if name not in known] == []


def advice() -> Iterator[tuple[str, str]]:
    """Where it stands, and the text of each `do=`, without the values of an f-string."""
    for path in advising():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "do":
                parts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                yield f"{path.name}:{node.value.lineno}", " ".join(map(str, parts))


def test_commands_that_an_advice_names_exist() -> None:
    found = [(place, word) for place, text in advice() for word in re.findall(r"`([a-z-]+)`", text)]
    assert found
    functions = {"encode", "decode"}  # of a trained run, of an autoencoder
    assert [(place, word) for place, word in found if word not in {*COMMANDS, *functions}] == []


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The advice for a command line that is refused."""
    assert cli.run(argv)[0] == Exit.USER
    return capsys.readouterr().err.partition("to do:")[2].strip()


def test_the_advice_of_a_command_line_is_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = next(iter(PRESETS))
    store.write_json(tmp_path / "mine.json", {"run.steps": 4, "run.stepz": 4})
    file = str(tmp_path / "mine.json")

    assert refused(["trainn"], capsys).endswith("--help lists the commands")
    assert cli.run(["--help"])[0] == Exit.DONE
    assert TRAIN in capsys.readouterr().out

    do = refused([TRAIN, "nothing"], capsys)
    assert cli.parse([TRAIN, *do.partition("override fields: ")[2].split()])

    assert refused([TRAIN, preset, "--config", file], capsys).startswith("leave one out")
    assert cli.parse([TRAIN, preset])

    assert refused([TRAIN, "--config"], capsys) == "add the value"
    assert "delete their lines" in refused([TRAIN, "--config", file], capsys)
    store.write_json(tmp_path / "mine.json", {"run.steps": 4})
    assert cli.parse([TRAIN, "--config", file]).keywords["config"].run.steps == 4

    assert refused([TRAIN, "--steps", "0"], capsys).endswith("leave it out")
    assert cli.parse([TRAIN])


def test_the_advice_on_trackers_is_followed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        make_trackers(["tensorbored"], tmp_path, {})
    names = str(refusal.value).partition("expected:")[2].partition("\n")[0].split()
    assert cli.parse([TRAIN, "--trackers", *names]).keywords["config"].run.trackers == (*names,)


def test_the_advice_on_the_mesh_is_followed() -> None:
    count = jax.device_count()
    with pytest.raises(UserError, match=f"--mesh.data -1 and choose .* divides {count}"):
        make_mesh(MeshConfig(data=count + 1))
    assert make_mesh(MeshConfig(data=-1, fsdp=count)).size == count


@pytest.mark.parametrize(
    ("variable", "start"),
    [("JAX_NUM_CPU_DEVICES", lambda: cli.parse(["bench"]))],
)
def test_the_advice_on_a_variable_is_followed(
    variable: str, start: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "0")
    with pytest.raises(UserError, match="unset it"):
        start()
    monkeypatch.delenv(variable)
    start()
