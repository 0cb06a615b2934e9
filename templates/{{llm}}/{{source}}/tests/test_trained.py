"""A run folder stands alone, and is read by the code that it was trained with or not at all."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from ..commands.evaluate import evaluate
from ..commands.export import export
from ..commands.sample import sample
from ..config import Config
from ..errors import UserError
from ..hub import unknown_parts
from ..model import Block
from ..records.provenance import sources
from ..run_config import MeshConfig
from ..runtime import loop
from ..runtime.sharding import make_mesh
from ..text.prepare import prepare
from ..trained import open_run
from ..training.layers import norm_gain
from ..workload import make_workload
from . import tiny


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A folder with `run`, trained for a step, and `data`, whose path was given from there."""
    folder = tmp_path_factory.mktemp("project")
    config = tiny.with_text(folder, steps=1)
    data = replace(config.data, prepared_dir="data", tokenizer="bpe", vocab_size=300)
    run = replace(config.run, run_dir="run")
    config = replace(config, data=data, run=run, mesh=MeshConfig(fsdp=8))
    mesh = make_mesh(config.mesh)
    with contextlib.chdir(folder):
        assert loop.run(make_workload(config, mesh), config, mesh) == 0
    return folder, config


def changed_block(monkeypatch: pytest.MonkeyPatch, change: Callable[[Block], object]) -> None:
    real = Block.__init__

    def init(self: Block, *args: object) -> None:
        real(self, *args)
        change(self)

    monkeypatch.setattr(Block, "__init__", init)


@pytest.mark.parametrize(
    ("change", "got", "expected"),
    [
        (lambda block: delattr(block, "up"), "'up'.*: nothing", r"'up'.*float32\[2, 32, 64\]"),
        (lambda block: setattr(block, "bias", norm_gain(4)), r"'bias'.*float32\[2, 4\]", "nothing"),
        (
            lambda block: setattr(block, "up", norm_gain(4)),
            r"'up'.*float32\[2, 4\]",
            r"'up'.*float32\[2, 32, 64\]",
        ),
    ],
    ids=["removed", "added", "reshaped"],
)
def test_code_with_other_parameters_reads_nothing(
    project: tuple[Path, Config],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: Callable[[Block], object],
    got: str,
    expected: str,
) -> None:
    run_dir = str(project[0] / "run")
    changed_block(monkeypatch, change)
    for read in (open_run, lambda d: sample(run_dir=d), lambda d: evaluate(run_dir=d)):
        with pytest.raises(UserError, match=f"got: .*{got}.*\nexpected: .*{expected}.*\n.*undo"):
            read(run_dir)
    with pytest.raises(UserError, match=got):
        export(to=str(tmp_path / "hub"), run_dir=run_dir)
    assert not (tmp_path / "hub").exists()


def test_a_run_folder_alone_is_sampled_exported_and_used_as_a_library(
    project: tuple[Path, Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, config = project
    monkeypatch.chdir(tmp_path)
    home = open_run(folder / "run")
    expected = home.loss("line 1 of 2\n")
    assert evaluate(run_dir=str(folder / "run")) == 0  # the text is beside the run
    shutil.copytree(folder / "run", "moved")
    assert evaluate(run_dir="moved") == 0  # the text is where the training had it
    figures = capsys.readouterr().out
    (folder / "data").rename(folder / "gone")
    try:
        assert open_run("moved").loss("line 1 of 2\n") == expected
        assert sample(run_dir="moved", prompt="line ", chars=9) == 0
        is_known = not unknown_parts(home.learner)  # a changed model may be none of the Hub's
        assert not is_known or export(to="hub", run_dir="moved") == 0
        with pytest.raises(UserError, match=r"(?s)no data near moved.*corpus_sha256") as refused:
            evaluate(run_dir="moved")
        assert f"`prepare --config {Path('moved', 'config.json')}`" in str(refused.value)
        prepare(config.data, show=False)  # what that command does
        capsys.readouterr()
        assert evaluate(run_dir="moved") == 0
        assert capsys.readouterr().out in figures
    finally:
        (folder / "gone").rename(folder / "data")
    if not is_known:
        return
    tensors = load_file("hub/model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape == (300, 32)
    ids = Tokenizer.from_file("hub/tokenizer.json").encode("line 1").ids
    assert ids == home.encode("line 1").tolist()


def test_what_is_kept_is_verified_and_the_prepared_text_stands_in(
    project: tuple[Path, Config], tmp_path: Path
) -> None:
    folder = project[0]
    for name in ("run", "data"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "run" / "config.json").unlink()  # its text is looked for beside it alone
    kept = tmp_path / "run" / "inputs"
    (kept / "tokenizer.json").write_text("{}")
    assert open_run(tmp_path / "run").inputs == tmp_path / "data"
    shutil.rmtree(kept)  # as before release 0.4.0
    assert open_run(tmp_path / "run").inputs == tmp_path / "data"
    other = tmp_path / "data" / "manifest.json"
    sha256 = open_run(tmp_path / "run").corpus_sha256
    other.write_text(other.read_text().replace(sha256, "f" * 64))
    with pytest.raises(UserError, match=rf"(?s)data with corpus_sha256 ffff.*{sha256[:12]}"):
        open_run(tmp_path / "run").heldout()
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match=r"(?s)no data near .*tokenizer_sha256"):
        open_run(tmp_path / "run")


def test_the_code_that_decides_the_numbers(tmp_path: Path) -> None:
    found = sources()
    assert {"workload.py", "step.py", "model.py", "data.py", "contract.py"} <= {*found}
    assert {"attention.py", "training/update.py", "training/optim.py"} <= {*found}
    assert not {"hub.py", "trained.py", "cli.py", "config.py", "run_config.py"} & {*found}
    assert not {"runtime", "records", "commands"} & {name.partition("/")[0] for name in found}
    package = shutil.copytree(Path(__file__).parents[1], tmp_path / "package")
    assert sources(package) == found
    for name in ("model.py", "config.py", "runtime/loop.py"):
        with (package / name).open("a") as file:
            file.write("\nMORE = 1\n")
    assert [name for name, sha256 in sources(package).items() if sha256 != found[name]] == [
        "model.py"
    ]
