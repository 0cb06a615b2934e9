"""A fit, killed, moved and resumed through the command line: the same draws, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ..diagnosed import report_verdict
from ..errors import Exit
from ..posterior.draws import read_draws
from ..runtime.tests.children import Child, command, kill_thrice, optimised, start_two, steps_of

TINY = "fit --model.name eight_schools --nuts.chunk 10 --trackers --eval-every-steps 0"
LONG = "--steps 100000 --save-every-steps 7"


def start(
    folder: Path,
    name: str,
    options: str,
    devices: int = 1,
    run: Callable[..., None] = optimised,
) -> Child:
    argv = f"{TINY} --run-dir {folder / name} {options}".split()
    return Child(run, *argv, log=folder / f"{name}.log", devices=devices)


def draws(run_dir: Path) -> dict[str, np.ndarray]:
    tree = read_draws(run_dir / "outputs")
    groups = ("posterior", "sample_stats")
    return {f"{g}/{n}": a.values for g in groups for n, a in tree[g].data_vars.items()}


def assert_equal(run_dir: Path, other: Path, count: int) -> None:
    found, expected = draws(run_dir), draws(other)
    assert {*found} == {*expected} > {"posterior/theta", "sample_stats/diverging"}
    for name, values in expected.items():
        assert values.shape[:2] == (4, count)
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_kills_in_warm_up_and_in_sampling_change_no_bit(tmp_path: Path) -> None:
    for name, warmup in (("adapting", 100_000), ("sampling", 50)):
        run_dir, options = tmp_path / name, f"--nuts.warmup {warmup}"
        last = kill_thrice(lambda: start(tmp_path, name, f"{options} {LONG}"), run_dir)  # noqa: B023
        assert (last < warmup // 10) is (name == "adapting")
        for folder in (name, f"{name}-calm"):
            child = start(tmp_path, folder, f"{options} --steps {last + 10}")
            assert child.code() in (Exit.DONE, Exit.REFUSED), child.log.read_text()
        if name == "sampling":
            assert_equal(run_dir, tmp_path / f"{name}-calm", 10 * (last + 10) - warmup)
        else:
            metrics = [
                [json.loads(line) for line in (tmp_path / f / "metrics.jsonl").open()]
                for f in (name, f"{name}-calm")
            ]
            ours = ("step", "log_density", "step_size", "leapfrogs", "accept", "rhat")
            killed, calm = ([[r[k] for k in ours] for r in records] for records in metrics)
            assert killed == calm


def test_a_kill_in_warm_up_changes_no_draw_after_it(tmp_path: Path) -> None:
    """The adaptation is a part of the checkpoint."""
    child = start(tmp_path, "killed", f"--nuts.warmup 1000 {LONG}")
    child.wait_for(lambda: max(steps_of(tmp_path / "killed"), default=0) > 30)
    child.process.kill()
    child.process.join()
    for name in ("killed", "calm"):
        code = start(tmp_path, name, "--nuts.warmup 1000 --steps 120").code()
        assert code in (Exit.DONE, Exit.REFUSED)
    assert_equal(tmp_path / "killed", tmp_path / "calm", 200)


def test_eight_devices_then_four_then_one(tmp_path: Path) -> None:
    options = "--nuts.warmup 200 --nuts.chains 8"
    for devices, steps in ((8, 15), (4, 30), (1, 40)):
        log = start(tmp_path, "moved", f"{options} --steps {steps}", devices)
        assert log.code() in (Exit.DONE, Exit.REFUSED), log.log.read_text()
    assert start(tmp_path, "stayed", f"{options} --steps 40").code() is not None
    found, expected = draws(tmp_path / "moved"), draws(tmp_path / "stayed")
    assert found["posterior/mu"].shape == (8, 200)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_the_chains_stay_those_that_the_run_began_with(tmp_path: Path) -> None:
    start(tmp_path, "run", "--nuts.warmup 100 --steps 12", devices=8).code()
    child = start(tmp_path, "run", "--nuts.warmup 100 --steps 14", devices=2)
    assert child.code() in (Exit.DONE, Exit.REFUSED), child.log.read_text()
    assert draws(tmp_path / "run")["posterior/mu"].shape == (8, 40)
    child = start(tmp_path, "run", "--nuts.warmup 100 --steps 16", devices=3)
    assert child.code() == Exit.USER
    assert "8 chains on 3 devices" in child.log.read_text()


def test_two_processes_draw_as_one(tmp_path: Path) -> None:
    argv = f"{TINY} --run-dir {tmp_path / 'two'} --nuts.warmup 200 --steps 60".split()
    pair = start_two(command, argv, argv, folder=tmp_path)
    codes = [child.code() for child in pair]
    assert codes[0] == codes[1], "\n".join(child.log.read_text() for child in pair)
    assert codes[0] in (Exit.DONE, Exit.REFUSED), pair[0].log.read_text()
    start(tmp_path, "one", "--nuts.warmup 200 --steps 60", run=command).code()
    assert_equal(tmp_path / "two", tmp_path / "one", 400)


def test_another_model_table_or_warm_up_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("school,effect,error\nA,28,15\nB,8,10\n")
    base = f"--nuts.warmup 50 --data.path {table}"
    assert start(tmp_path, "run", f"{base} --steps 6").code() == Exit.REFUSED
    for options, says in (
        ("--model.name eight_schools_centred", "model.name=eight_schools"),
        ("--nuts.warmup 60", "nuts.warmup=50"),
        ("--nuts.target-accept 0.95", "nuts.target_accept=0.9"),
        ("--nuts.metric dense", "nuts.metric=diagonal"),
        ("--nuts.layout vmap", "nuts.layout=map"),
        ("--nuts.chains 8", "nuts.chains=4"),
        ("changed", "table_sha256"),
        ("nan", "row 2, column error: 'nan'"),
    ):
        if not options.startswith("--"):
            cell = "11" if options == "changed" else "nan"
            table.write_text(f"school,effect,error\nA,28,15\nB,8,{cell}\n")
            options = ""
        child = start(tmp_path, "run", f"{base} --steps 8 {options}")
        assert child.code() == Exit.USER, child.log.read_text()
        text = child.log.read_text()
        for word in ("got:", "expected:", "to do:", says):
            assert word in text, (options, text)
        assert "Traceback" not in text
        child.log.unlink()


def test_the_centred_twin_is_refused_and_named(tmp_path: Path) -> None:
    options = "--model.name eight_schools_centred --nuts.chunk 100 --steps 20"
    child = start(tmp_path, "run", options)
    assert child.code() == Exit.REFUSED, child.log.read_text()
    text = child.log.read_text()
    assert "DRAWS ARE REFUSED" in text
    assert "tau" in text.partition("REFUSED")[2]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["trusted"] is False
    argv = ["diagnose", "--run-dir", str(tmp_path / "run")]
    assert Child(command, *argv, log=tmp_path / "again").code() == Exit.REFUSED
    assert (tmp_path / "again").read_text().endswith(text[text.index("THE DRAWS") :])


def test_a_fit_ends_when_it_has_enough(tmp_path: Path) -> None:
    options = "--nuts.chunk 100 --steps 200 --nuts.target-ess 1500"
    options += " --eval-every-steps 5 --save-every-steps 5"
    child = start(tmp_path, "run", options)
    assert child.code() == Exit.DONE, child.log.read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert min(summary["ess_bulk_min"], summary["ess_tail_min"]) >= 1500
    count = draws(tmp_path / "run")["posterior/mu"].shape[1]
    assert 300 < count < 5000
    assert summary["draws"] == 4 * count


def test_a_fit_of_a_guide_is_killed_resumed_judged_and_lengthened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--method svi --svi.batch-rows 5 --svi.chunk 50 --svi.draws 400 --save-every-steps 7"
    child = start(tmp_path, "killed", f"{options} --steps 300")
    child.wait_for(lambda: max(steps_of(tmp_path / "killed"), default=0) > 30)
    child.process.kill()
    child.process.join()
    for name in ("killed", "calm"):
        child = start(tmp_path, name, f"{options} --steps 300")
        assert child.code() == Exit.DONE, child.log.read_text()
    found, expected = draws(tmp_path / "killed"), draws(tmp_path / "calm")
    assert expected["posterior/theta"].shape == (1, 400, 8)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("killed", "calm")
    ]
    assert losses[0] == losses[1]
    summary = json.loads((tmp_path / "calm" / "summary.json").read_text())
    assert summary["trusted"]
    assert summary["khat"] < 0.7
    report = (tmp_path / "calm" / "report.html").read_text()
    assert all(f'alt="{name}-00000300"' in report for name in ("forest", "predictive"))
    assert "traces_and_ranks" not in report, "one chain has nothing to be ranked against"

    # A rate so large that the guide no longer fits.
    longer = f"{options} --steps 310 --svi.learning-rate 10"
    assert start(tmp_path, "calm", longer).code() == Exit.REFUSED
    longer = draws(tmp_path / "calm")["posterior/theta"]
    assert longer.shape == (1, 400, 8)
    assert (longer != expected["posterior/theta"]).all()
    assert report_verdict(str(tmp_path / "calm")) == Exit.REFUSED
    assert "k-hat" in capsys.readouterr().out
