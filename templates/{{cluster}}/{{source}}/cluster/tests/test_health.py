"""The checks pass on sound processes, and name the one that computes wrongly or does not answer."""

import time
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import pytest

from ... import cli
from ...commands.health import health as health_command
from ...errors import Exit
from ...runtime.tests.children import Child, start_job
from .. import health

THREE = [(index,) for index in range(3)]


def check(index: int, wrong: str = "") -> None:
    """A process of a job that is tested, and says so again; process 1 may be unsound."""
    real_compute, real_reach = health.compute, health.reach

    def compute() -> float:
        if (index, wrong) == (1, "computes"):
            raise ArithmeticError("a chip multiplies wrongly")
        return real_compute()

    def reach(members: Collection[int]) -> float:
        if (index, wrong) == (1, "hangs"):
            time.sleep(600)
        return real_reach(members)

    health.compute, health.reach = compute, reach
    health.SENT = 2**10
    cli.find_commands()["health"] = health_command
    limit = ["--limit-s", "3"] if wrong == "hangs" else []
    cli.main(["health", *limit, "--", "health", *limit])


def ends_of(job: list[Child]) -> tuple[list[int | None], str]:
    codes = [child.code(90) for child in job]
    return codes, "\n".join(child.log.read_text() for child in job)


def test_sound_processes_pass_twice(tmp_path: Path) -> None:
    codes, told = ends_of(start_job(check, *THREE, folder=tmp_path, devices=1))
    assert codes == [Exit.DONE] * 3, told
    names = [line.partition(":")[0] for line in told.splitlines()]
    assert [n for n in names if n in ("alone", "pairs", "all", "sound")] == [
        *("alone", "pairs", "all", "sound") * 2
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("computes", "alone: FAILED\n  process 1 on "),
        # Process 0 has no other neighbour that could clear it; process 2 neither.
        ("hangs", "pairs: FAILED\n  process 0 on "),
    ],
)
def test_an_unsound_process_is_named(tmp_path: Path, wrong: str, words: str) -> None:
    args = [(index, wrong) for index in range(3)]
    codes, told = ends_of(start_job(check, *args, folder=tmp_path, devices=1))
    assert codes == [Exit.HUNG] * 3, told
    assert words in told
    assert ("process 0 on" in told) == (wrong == "hangs")
    assert "sound" not in told


@pytest.mark.parametrize("count", range(2, 8))
def test_pairs_meet_every_neighbour(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process is in one pair of a round at most; a bad one is told from its neighbours."""
    bad = 2 % count
    rounds = []

    def run(
        name: str, members: Collection[int], work: Callable[[], float], limit_s: float
    ) -> health.Check:
        hosts = dict.fromkeys(range(count), "h")
        if name != "pairs":
            return health.Check(name, hosts, dict.fromkeys(members, 1.0), {})
        pairs = {tuple(sorted(pair)) for pair in dict(members).values()}
        assert len(members) == 2 * len(pairs)
        rounds.extend(pairs)
        failed = {i: "wrong" for pair in pairs if bad in pair for i in pair}
        seconds = {i: 1.0 for i in members if i not in failed}
        return health.Check(name, hosts, seconds, failed)

    monkeypatch.setattr(health, "run", run)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    *_, last = health.check_all(1.0)
    line = {(i, i + 1) for i in range(count - 1)}
    assert {*rounds} == line | ({(0, count - 1)} if count > 2 and count % 2 == 0 else set())
    if count > 3:
        assert last.failed == {bad: "wrong"} or (bad == count - 1 and len(last.failed) == 2)


def test_a_slow_process_is_told() -> None:
    hosts = {i: f"h{i}" for i in range(3)}
    told = str(health.Check("alone", hosts, {0: 0.001, 1: 0.001, 2: 0.003}, {}))
    assert told == "alone: 1 ms; slow: process 2 on h2, 3 ms"
