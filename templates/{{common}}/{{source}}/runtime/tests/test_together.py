"""Processes of a job that disagree, that do not come, or that are asked to stop in the middle."""

import dataclasses
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from ... import cli
from ...errors import Exit, UserError
from ...records.store import read_lines
from .. import agree, distributed, hosts, loop, stop
from ..sharding import make_mesh
from ..start import start_processes
from ..stop import StopRequest
from .children import Child, start_job
from .workloads import config_of, sampler

EVALUATED = 4  # the step at which the evaluation takes minutes


def as_command(run: Callable[[], int]) -> None:
    """In a child: the console script, with `run` as its command once the job is joined."""

    def train() -> int:
        start_processes()
        jax.devices()  # which waits for all processes too
        return run()

    hosts.TELL_S = 0.2
    cli.find_commands()["train"] = train
    cli.main(["train"])


@contextmanager
def together(target: Callable[..., None], *args: Any, folder: Path) -> Iterator[list[Child]]:
    """Two processes of a job, each called with its index and `args`."""
    pair = start_job(target, (0, *args), (1, *args), folder=folder)
    try:
        yield pair
    finally:
        for child in pair:
            child.process.kill()


def logs(pair: list[Child]) -> str:
    return "\n".join(child.log.read_text() for child in pair)


def prepare(index: int, seconds: float, folder: Path) -> None:
    """Process 0 waits for process 1, which prepares something."""

    def run() -> int:
        (folder / f"joined{index}").touch()
        if index == 1:
            time.sleep(seconds)
        distributed.barrier("prepared")
        return Exit.DONE

    distributed.REPORT_S, distributed.BARRIER_MS = 0.5, 2000
    as_command(run)


def test_a_barrier_says_who_is_missing(tmp_path: Path) -> None:
    with together(prepare, 60.0, tmp_path, folder=tmp_path) as pair:
        assert [child.code(30) for child in pair] == [Exit.HUNG] * 2, logs(pair)
        told = pair[0].log.read_text()
    assert "waiting at 'prepared 0' for process 1 on " in told
    assert "waited in vain at 'prepared 0' for process 1 on " in told
    assert "process 0 on" not in told


def test_a_stop_before_the_first_step_ends_all_at_once(tmp_path: Path) -> None:
    with together(prepare, 60.0, tmp_path, folder=tmp_path) as pair:
        pair[0].wait_for(lambda: all((tmp_path / f"joined{i}").exists() for i in range(2)))
        os.kill(pair[1].process.pid, signal.SIGTERM)
        assert [child.code(10) for child in pair] == [Exit.PREEMPTED] * 2, logs(pair)


def join_alone() -> None:
    os.environ["JAX_NUM_PROCESSES"] = "2"
    distributed.START_S, distributed.REPORT_S = 4, 0.5
    as_command(lambda: Exit.DONE)


def test_processes_that_do_not_come_are_waited_for_a_limited_time(tmp_path: Path) -> None:
    (child, *_) = start_job(join_alone, (), folder=tmp_path)
    assert child.code(30) == Exit.PEER_LOST, child.log.read_text()
    told = child.log.read_text()
    assert "process 0 of 2 waits for process 1, which has not come" in told
    assert "process 0 of 2 waited in vain for process 1, which has not come: run the same" in told


def test_a_stop_while_the_processes_come_ends_at_once(tmp_path: Path) -> None:
    (child, *_) = start_job(join_alone, (), folder=tmp_path)
    child.wait_for(lambda: "waits for process 1" in child.log.read_text())
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.code(10) == Exit.PREEMPTED, child.log.read_text()


def evaluate_for_minutes(index: int, run_dir: Path) -> None:
    """An evaluation in which process 1 beats twice as often, and a library takes SIGTERM."""
    config = config_of(run_dir, 8, save_every_steps=0, eval_every_steps=EVALUATED)

    def evaluate(state: Any, beat: Callable[[], None]) -> dict[str, float]:
        if index == 1:
            signal.signal(signal.SIGTERM, lambda *_: None)
        for _ in range(600):
            time.sleep(0.1)
            for _ in range(1 + index):
                beat()
        return {"heldout": 1.0}

    def run() -> int:
        workload = dataclasses.replace(sampler(config), evaluate=evaluate)
        return loop.run(workload, config, make_mesh(config.mesh))

    as_command(run)


def test_a_stop_does_not_wait_for_an_evaluation(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def told() -> list[tuple[int, str]]:
        with open(run_dir / hosts.FILE) as file:
            return [(row["step"], row["doing"]) for row in json.load(file)]

    with together(evaluate_for_minutes, run_dir, folder=tmp_path) as pair:
        pair[0].wait_for((run_dir / hosts.FILE).exists)
        pair[0].wait_for(lambda: told() == [(EVALUATED, "evaluate")] * 2)
        time.sleep(0.5)
        os.kill(pair[1].process.pid, signal.SIGTERM)
        began_s = time.monotonic()
        assert [child.code(60) for child in pair] == [Exit.PREEMPTED] * 2, logs(pair)
        assert time.monotonic() - began_s < 30
    assert "put back" in pair[1].log.read_text()
    (saved,) = (run_dir / "checkpoints").iterdir()
    assert int(saved.name) == EVALUATED
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["owed"]["evaluate"]
    assert [record["step"] for record in read_lines(run_dir / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("count", [0, 3, 10, 15])
def test_processes_agree_again_after_unequal_beats(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    polled: list[int] = []
    monkeypatch.setattr(stop, "BEATS", 10)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    reached = SimpleNamespace(reached_preemption_sync_point=lambda id: polled.append(id))
    monkeypatch.setattr(stop, "multihost_utils", reached)
    monkeypatch.setattr(stop, "_polls", itertools.count(1))
    request, beats = StopRequest(), []

    def work(beat: Callable[[], None]) -> str:
        for _ in range(count):
            beat()
        return "done"

    assert request.unless_stopped(work, 1, lambda: beats.append(1)) == "done"
    request.decide(2)
    assert polled == [*range(1, 12)]  # JAX decides for one number, and skips none
    assert len(beats) == count


def stall(index: int, run_dir: Path) -> None:
    """Process 1 gets no fifth batch."""
    config = config_of(run_dir, 8, hang_timeout_s=3.0)

    def batch(cursor: int) -> dict[str, jax.Array]:
        if (index, cursor) == (1, 4):
            time.sleep(600)
        return {}

    def run() -> int:
        workload = dataclasses.replace(sampler(config), batch=batch)
        return loop.run(workload, config, make_mesh(config.mesh))

    as_command(run)


def test_a_hang_names_the_process_that_the_others_wait_for(tmp_path: Path) -> None:
    with together(stall, tmp_path / "run", folder=tmp_path) as pair:
        assert [child.code(60) for child in pair] == [Exit.HUNG] * 2, logs(pair)
        assert "furthest behind: process 1 on" in logs(pair)
        assert ": step 5, data_wait for" in logs(pair)


def test_the_furthest_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def behind(*rows: tuple[int, str, float]) -> str:
        told = [
            {"process": i, "host": f"h{i}", "step": s, "doing": d, "seconds": t, "told": 1e12}
            for i, (s, d, t) in enumerate(rows)
        ]
        monkeypatch.setattr(hosts, "table", lambda: told)
        return hosts.furthest_behind().partition(" on ")[0].rpartition(" ")[2]

    assert behind((8, "step", 9.0), (7, "step", 3.0)) == "1"
    assert behind((8, "step", 9.0), (8, "data_wait", 3.0), (8, "step", 9.0)) == "1"
    assert behind((8, "step", 3.0), (8, "step", 9.0)) == "1"
    assert hosts.furthest_behind().endswith("(others: step 8, step)")


def differ(index: int, what: str, run_dir: Path) -> None:
    """Process 1 has another seed, or another program under the same settings."""
    config = config_of(run_dir, 8, seed=index if what == "seed" else 0)
    plain = sampler(config)

    def step(state: Any, batch: Any) -> Any:
        state, metrics, outputs = plain.step(state, batch)
        extra = index if what == "program" else 0
        return state, {name: value + extra for name, value in metrics.items()}, outputs

    def run() -> int:
        workload = dataclasses.replace(plain, step=step)
        return loop.run(workload, config, make_mesh(config.mesh))

    as_command(run)


@pytest.mark.parametrize(
    ("what", "words"),
    [("seed", "process 1: run.seed 1, not 0"), ("program", "process 1: the program of a step ")],
)
def test_what_differs_is_refused_before_it_is_compiled(
    tmp_path: Path, what: str, words: str
) -> None:
    with together(differ, what, tmp_path / "run", folder=tmp_path) as pair:
        assert [child.code(60) for child in pair] == [Exit.USER] * 2, logs(pair)
        assert words in logs(pair)
    assert not read_lines(tmp_path / "run" / "metrics.jsonl")


def test_other_facts_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"run.seed": 0, "run.trackers": (), "code of step.py": "aa", "jax": "0.12"}
    others = [facts, facts, facts | {"run.seed": 1}, {k: facts[k] for k in facts if k != "jax"}]
    said: dict[str, dict[int, str]] = {}

    def say(process: int) -> str:
        def exchange(name: str, text: str) -> dict[int, str]:
            said.setdefault(name, {})[process] = text
            return said[name]

        own = SimpleNamespace(client="any", process_id=process)
        monkeypatch.setattr(agree, "job", lambda: own)
        monkeypatch.setattr(agree, "exchange", exchange)
        monkeypatch.setattr(agree, "unique", lambda name: name)
        try:
            agree.check_same(others[process], "take one command")
        except UserError as error:
            return str(error)
        return ""

    assert [say(process) for process in range(2)] == ["", ""]
    assert "got:      process 2: run.seed 1, not 0\n" in say(2)
    assert "; and process 3: jax None, not '0.12'\n" in say(3)
