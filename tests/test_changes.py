"""The path of someone who makes the project their own, and the README's table "Change" on it.

Each change is one file, and only golden losses notice. All are made in one project, so that its
tests run once; it trains with its own text, size, layer, metric and preset, goes on, is used as a
library, and follows a newer template.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from growing import commit_all, grow, template_repository
from installed import ONE_MESH, environment, losses_of, uv
from updating import NEWER, PINNED, adopt, edit, release_next, update

pytestmark = pytest.mark.slow

# File -> the text that stands there, and what a user writes in its place.
CHANGES: dict[str, list[tuple[str, str]]] = {
    "model.py": [  # a GELU layer of two matrices
        (
            "        self.gate = matrix(next(keys), (c.width, c.mlp_width), "
            '("embed", "mlp"), std=std_in)\n',
            "",
        ),
        (
            "linear(jax.nn.silu(linear(h, self.gate)) * linear(h, self.up), self.down)",
            "linear(jnp.minimum(jax.nn.gelu(linear(h, self.up)), self.config.top or 9), self.down)",
        ),
    ],
    "training/schedule.py": [
        (
            '"linear": linear}',
            '"linear": linear, "root": lambda c, steps: lambda step: (1 + step) ** -0.5}',
        )
    ],
    "training/axes.py": [('"vocab": ("tensor", "fsdp")', '"vocab": "tensor"')],
    "text/corpus.py": [
        ('SUFFIXES = (".txt",', 'SUFFIXES = (".md", ".txt",'),
        ('name.endswith(".txt")', 'name.endswith((".md", ".txt"))'),
    ],
    "step.py": [
        (
            '{"loss": loss, "weight": counted.sum().astype(jnp.float32)}',
            '{\n        "loss": loss,\n        "sure": (counted & (losses < 1)).sum() * 1.0,\n'
            '        "weight": counted.sum().astype(jnp.float32),\n    }',
        )
    ],
    "evaluate.py": [
        (
            '{"heldout_loss": nats / tokens}',
            '{"heldout_loss": nats / tokens + learner.config.model.shift, '
            '"heldout_perplexity": math.exp(nats / tokens)}',
        )
    ],
    "config.py": [
        (  # settings of one's own, plain and marked, with defaults that bounds of ours would refuse
            "    scan_unroll: int",
            "    top: float | None = None  # the largest activation of the MLP\n"
            "    shift: float = identity(0.0)  # of the loss\n"
            "    scan_unroll: int",
        ),
        (
            "PRESETS: dict",
            '''def mine() -> Config:
    """A preset with a mesh and a data set of its own."""
    start = demo()
    return replace(
        start,
        run=replace(start.run, run_dir="runs/mine", steps=4, log_every_steps=1),
        mesh=MeshConfig(data=1, fsdp=2),
        optim=replace(start.optim, schedule="root", warmup_steps=1),
        model=replace(start.model, layers=1, width=32, scan_unroll=1),
        data=DataConfig(
            paths=("notes/*.md",),
            prepared_dir="data/mine",
            tokenizer="byte",
            heldout_fraction=0.2,
            seq_len=32,
            batch_size=8,
        ),
    )


PRESETS: dict''',
        ),
        ('    "demo": demo,\n', '    "demo": demo,\n    "mine": mine,\n'),
    ],
}
# The tests that a change could reach. Those of the runtime, of records, of text on disk and of the
# update know no model; those of a killed run take minutes.
TESTS = [f"tests/test_{name}.py" for name in ("cli", "config", "generate", "hub", "model", "step")]
TESTS += [f"training/tests/test_{name}.py" for name in ("axes", "optim", "optim_config")]
TESTS += ["tests/test_rooms.py", "tests/test_trained.py", "tests/test_llm_advice.py"]
TESTS += [f"text/tests/test_{name}.py" for name in ("corpus", "paths", "usable")]
TESTS += ["commands/tests/test_preflight.py"]


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template_repository(tmp_path_factory.mktemp("template") / "flaxseed")


@pytest.fixture(scope="module")
def changed(moving: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which everything has been changed that the table names."""
    folder = tmp_path_factory.mktemp("changed") / "acorn"
    project = adopt(grow(moving, folder, vcs_ref=PINNED))
    for name, edits in CHANGES.items():
        for old, new in edits:
            edit(project / "src" / "acorn" / name, old, new)
    (project / "notes").mkdir()
    for i in range(40):
        (project / "notes" / f"{i}.md").write_text("".join(f"line {n} of {i}\n" for n in range(i)))
    uv(project, "sync")
    return project


def test_each_change_is_in_a_file_that_the_table_names(changed: Path) -> None:
    table = (changed / "README.md").read_text("utf-8").partition("## Change\n")[2]
    named = re.findall(r"`([\w/]+\.py)`", table.partition("\n## ")[0])
    assert set(named) == set(CHANGES)


def test_only_the_golden_losses_notice_and_say_what_to_do(changed: Path) -> None:
    tests = [f"src/acorn/{name}" for name in TESTS]
    told = uv(changed, "run", "pytest", "-q", "-rfs", "-k", ONE_MESH, *tests, code=1)
    failed = re.findall(r"^(?:FAILED|ERROR) \S*?(\w+\.py(?:::\S+)?)", told, re.MULTILINE)
    assert failed == ["test_step.py::test_golden_losses"], told[-8000:]
    assert re.search(r"SKIPPED \[2\] .*test_hub.py.*`export` refuses it", told), told[-8000:]

    (command,) = set(re.findall(r"^E? +(UPDATE_GOLDEN=1 .*)$", told, re.MULTILINE))
    path = os.pathsep.join([str(Path(os.environ.get("UV", "uv")).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=changed,
        env=environment() | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    golden = changed / "src" / "acorn" / "tests" / "golden" / "presets.json"
    assert "mine" in json.loads(golden.read_text("utf-8"))


def test_they_train_together(changed: Path) -> None:
    told = uv(changed, "run", "--no-sync", "acorn", "train", "mine", JAX_NUM_CPU_DEVICES="2")
    lines = (changed / "runs" / "mine" / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert 0 <= next(r["sure"] for r in records if "sure" in r) <= 1, told
    last = next(r for r in reversed(records) if "heldout_perplexity" in r)
    assert last["heldout_perplexity"] == pytest.approx(2.718281828 ** last["heldout_loss"], 1e-4)
    report = (changed / "runs" / "mine" / "report.html").read_text("utf-8")
    assert "perplexity" in report
    export = ["acorn", "export", "--run-dir", "runs/mine", "--to", "hub"]
    refused = uv(changed, "run", "--no-sync", *export, code=2)
    assert "gate" in refused


def test_it_goes_on_without_retyping(changed: Path) -> None:
    before = losses_of(changed / "runs" / "mine")
    train = ["run", "--no-sync", "acorn", "train", "--run-dir", "runs/mine"]
    told = uv(changed, *train, "--steps", "6", JAX_NUM_CPU_DEVICES="2")
    assert "begun with: acorn train mine" in told
    after = losses_of(changed / "runs" / "mine")
    assert list(after) == [1, 2, 3, 4, 5, 6]
    assert {step: after[step] for step in before} == before


def test_it_is_a_library(changed: Path) -> None:
    script = """
from acorn.trained import open_run
run = open_run("runs/mine")
print(run.step, run.loss("line 1 of 2"), run.logits(run.encode("a")).shape)
assert len(run.generate("li", chars=3)) <= 3
"""
    step, loss, *shape = uv(changed, "run", "--no-sync", "python", "-", typed=script).split()
    assert step == "6"
    assert 0 < float(loss) < 6
    assert shape[:2] == ["(2,", "257)"]


def test_a_newer_template_keeps_it_and_the_run_goes_on(changed: Path, moving: Path) -> None:
    commit_all(changed, "Mine")
    release_next(moving)
    update(changed, NEWER)
    for name, edits in CHANGES.items():
        text = (changed / "src" / "acorn" / name).read_text("utf-8")
        assert all(new in text for _, new in edits), name
    train = ["run", "--no-sync", "acorn", "train", "--run-dir", "runs/mine", "--steps", "8"]
    uv(changed, *train, JAX_NUM_CPU_DEVICES="2")
    assert list(losses_of(changed / "runs" / "mine")) == [1, 2, 3, 4, 5, 6, 7, 8]
