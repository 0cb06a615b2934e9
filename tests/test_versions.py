"""A project with the lowest dependencies that it allows, and runs that past releases began."""

import shutil
from pathlib import Path

import pytest
from growing import commit_all, grow, releases
from installed import MINI, ONE_MESH, TINY, losses_of, uv
from updating import PINNED, adopt, follow_releases

pytestmark = pytest.mark.slow
# Emitted tests that together run every dependency, and are short: for the lowest versions. What all
# kinds depend on is run with llm alone.
OPTIONS = {
    "llm": f"--steps 3 {MINI}",
    "diffusion": "--steps 3 --sample.images 20 --eval-every-steps 0",
    "bayes": "--steps 12 --nuts.warmup 200",  # fewer draws are refused
    "tpu": "--steps 3 --model.width 32 --data.seq-len 32",
}
CORE_TESTS = {
    "llm": ["test_step", "test_cli", "training/test_optim", "runtime/test_checkpoint"],
    "diffusion": ["test_step", "test_samplers", "test_trained", "images/test_sources"],
    "bayes": ["test_svi", "models/test_models", "posterior/test_table", "posterior/test_draws"],
    "tpu": ["test_step", "cluster/test_jobset", "commands/test_launch"],
}
CORE_TESTS["llm"] += ["records/test_telemetry", "records/test_trackers", "records/test_report"]
CORE_TESTS["llm"] += ["training/test_batches", "training/test_weights_file", "test_model"]
CORE_TESTS["llm"] += ["test_hub", "test_data", "text/test_corpus", "text/test_tokenizer"]
CORE_TESTS["bayes"] += ["posterior/test_diagnosis", "posterior/test_simulated"]
CORE_TESTS["diffusion"] += ["images/test_metrics", "images/test_decode"]


@pytest.mark.parametrize("kind", CORE_TESTS)
def test_the_lowest_dependencies_pass_the_core_tests(
    repository: Path, tmp_path: Path, kind: str
) -> None:
    project = grow(repository, tmp_path / "lowest", {"kind": kind}, vcs_ref=PINNED)
    uv(project, "sync", "--resolution", "lowest-direct")
    installed = uv(project, "pip", "freeze")
    assert "jax==0.11.1\n" in installed
    package = project / "src" / "acorn"
    split = [name.rpartition("/") for name in CORE_TESTS[kind]]
    wanted = [package / folder / "tests" / f"{name}.py" for folder, _, name in split]
    assert all(file.is_file() for file in wanted), "CORE_TESTS names a test that is not there"
    tests = ["-q", "-k", ONE_MESH, *map(str, wanted)]
    print(uv(project, "run", "--no-sync", "pytest", *tests)[-2000:])
    command = ["fit" if kind == "bayes" else "train", "demo", "--run-dir", "runs/short"]
    uv(project, "run", "--no-sync", "acorn", *command, *OPTIONS[kind].split())
    assert (project / "runs" / "short" / "summary.json").is_file()
    shutil.rmtree(project / ".venv")


@pytest.mark.parametrize("version", releases())
def test_a_run_begun_at_a_past_release_goes_on_after_the_update(
    repository: Path, tmp_path: Path, version: str
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(40):
        (corpus / f"{i}.txt").write_text("".join(f"line {n} of {i}\n" for n in range(i + 8)))
    project = adopt(grow(repository, tmp_path / "p", vcs_ref=f"v{version}"))
    uv(project, "sync")
    commit_all(project, "Lock the dependencies")
    text = f"--data.paths {corpus}/*.txt --data.prepared-dir {tmp_path}/data"
    train = ["run", "acorn", "train", "demo", *TINY.split(), *text.split()]
    train += ["--save-every-steps", "10", "--optim.horizon-steps", "40"]
    # bfloat16 would round differently in the two releases' programs.
    train += ["--model.compute-dtype", "float32"]
    uv(project, *train, "--run-dir", "runs/past", "--steps", "20")
    past = losses_of(project / "runs" / "past")
    assert list(past) == list(range(1, 21))

    follow_releases(project, version)
    assert (project / "src" / "acorn" / "runtime").is_dir()
    uv(project, "sync")
    uv(project, *train, "--run-dir", "runs/past", "--steps", "40")

    uv(project, *train, "--run-dir", f"{tmp_path}/whole", "--steps", "40")
    went_on, whole = losses_of(project / "runs" / "past"), losses_of(tmp_path / "whole")
    assert list(went_on) == list(whole) == list(range(1, 41))
    assert {step: went_on[step] for step in past} == past, "steps before the update ran again"
    assert went_on == pytest.approx(whole, rel=1e-3)
