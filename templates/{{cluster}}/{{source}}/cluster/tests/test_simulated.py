"""A job is run, struck, restarted and ended as its manifest says, and leaves nothing behind."""

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ...errors import UserError
from ...records import store
from ...runtime.detect import detect
from ...runtime.sink import read_outputs
from .. import simulated, simulated_host
from ..faults import Fault, parse
from ..jobset import jobset
from ..ledger import attempts
from ..pods import Pod, environment, pods, rehosted
from ..restarts import EVICTED
from ..simulated import Process, Simulation
from . import faults
from .jobs import job_of

COVER = ["exception in one"]  # `faults.py` tries every row


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return faults.calm_run(tmp_path_factory.mktemp("calm") / "run")


@pytest.fixture(autouse=True)
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "start_pod", simulated.start_pod)  # set back afterwards


@pytest.mark.parametrize("name", COVER)
def test_a_fault_is_survived(calm: np.ndarray, tmp_path: Path, name: str) -> None:
    (row,) = (row for row in faults.ROWS if row.name == name)
    assert not list(faults.wrongs(row, calm, tmp_path))


def test_three_failures_cost_nothing_and_every_second_is_told(
    calm: np.ndarray, tmp_path: Path
) -> None:
    run_dir, began = tmp_path / "run", time.time()
    struck = [*parse("term", ("1@step12", "0@step56"), 2), *parse("kill", ("0@step45",), 2)]
    outcome = faults.simulate(run_dir, struck)
    codes = [each["codes"] for each in outcome.attempts]
    assert [*codes[0], *codes[2], *codes[3]] == [42, 42, 42, 42, 0, 0], outcome
    assert codes[1] in ([137, 44], [137, 43]), outcome
    assert [each["then"] for each in outcome.attempts] == ["restart"] * 3 + ["complete"]
    np.testing.assert_array_equal(read_outputs(run_dir / "outputs")["draws"], calm)
    tried = attempts(store.read_lines(run_dir / "attempts.jsonl"))
    assert [each.end.rpartition(" ")[2] for each in tried] == ["(42)", "killed", "(42)", "(0)"]
    assert [each.lost > 0 for each in tried] == [False, True, False, False]
    assert all(fault.ended_s and fault.next_s and fault.ended_s < fault.next_s for fault in struck)
    # From the first start to the last record.
    wall_s = store.size_and_time(run_dir / "attempts.jsonl")[1] / 1e9 - began
    assert sum(each.wall_s for each in tried) == pytest.approx(wall_s, rel=0.01)


def run_stubs(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    code: str,
    *struck: Fault,
    grace: float = 1.0,
    **job: object,
) -> tuple[simulated.Outcome, list[Process]]:
    """A job of two hosts that run this Python; each begins once the one before is ready()."""
    started: list[Process] = []
    code = f"import sys\ndef ready(): open(sys.argv[2], 'w').close()\n{code}"

    def start_pod(pod: Pod, port: int, count: int, logs: Path) -> Process:
        log = logs / f"host-{pod.number}.log"
        with log.open("wb") as file:
            mark = logs / f"ready-{pod.number}"
            words = [sys.executable, "-c", code, str(pod.number), str(mark)]
            child = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        while "; ready()" in code and not mark.exists():
            assert child.poll() is None, log.read_text()
            time.sleep(0.01)
        started.append(Process(pod, log, child))
        return started[-1]

    monkeypatch.setattr(simulated, "start_pod", start_pod)
    try:
        manifest = rehosted(jobset(job_of(folder, **job)), 2)
        return Simulation(manifest, folder / "run", [*struck], grace=grace).run(), started
    finally:
        assert all(each.started.poll() is not None for each in started)


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(60)"
)


def test_who_ignores_sigterm_is_killed_after_its_grace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = "import time\nif sys.argv[1] == '0': ready(); time.sleep(1); sys.exit(2)\n"
    began_s = time.monotonic()
    outcome, _ = run_stubs(monkeypatch, tmp_path, first + STUBBORN)
    assert (outcome.code, outcome.attempts[0]["codes"]) == (2, [2, 137])
    assert 1.5 < time.monotonic() - began_s < 10


def test_restarts_are_counted_as_the_manifest_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(simulated, "PAUSE_S", 0.0)
    outcome, started = run_stubs(monkeypatch, tmp_path, "import sys; sys.exit(43)", retries=2)
    assert (outcome.code, len(outcome.attempts), len(started)) == (43, 3, 6)
    assert "maxRestarts 2 is reached" in outcome.why


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_the_hosts_save(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    saves = (
        "import signal, time\n"
        "def save(*_):\n time.sleep(0.3); print('saved', flush=True); sys.exit(42)\n"
        "signal.signal(signal.SIGTERM, save); ready(); [time.sleep(0.1) for _ in range(600)]"
    )
    # As the console script; SIGINT is ignored where a shell began this suite in the background.
    handlers = {signal.SIGTERM: lambda *_: sys.exit(42), signal.SIGINT: signal.default_int_handler}
    before = {each: signal.signal(each, handler) for each, handler in handlers.items()}
    folder = tmp_path / "run" / "simulated" / "attempt-1"

    def ask() -> None:
        while not (folder / "ready-1").exists():
            time.sleep(0.01)
        time.sleep(1.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask).start()
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_stubs(monkeypatch, tmp_path, saves, *parse("hang", ("1@0.5s",), 2), grace=5.0)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    logs = sorted(folder.glob("*.log"))
    assert [log.read_text() for log in logs] == ["saved\n"] * 2


AGAIN = "if 'attempt-1' not in sys.argv[2]: time.sleep(0.5); sys.exit(0)\n"


def test_a_host_is_told_to_end_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[tuple[int, int]] = []
    killpg = os.killpg

    def send(pid: int, number: int) -> None:
        sent.append((pid, number))
        killpg(pid, number)

    monkeypatch.setattr(os, "killpg", send)
    code = f"import time; ready()\n{AGAIN}[time.sleep(0.1) for _ in range(600)]"
    _, started = run_stubs(monkeypatch, tmp_path, code, *parse("term", ("1@0.5s",), 2))
    assert sorted(sent) == sorted((each.started.pid, signal.SIGTERM) for each in started[:2])


@pytest.mark.parametrize(("spot", "rule"), [(True, "peer_lost"), (False, "fault")])
def test_a_machine_that_vanishes_is_told_of_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spot: bool, rule: str
) -> None:
    code = f"import time; ready()\n{AGAIN}time.sleep(2 + 60 * int(sys.argv[1])); sys.exit(44)"
    fault = parse("gone", ("1@0.5s",), 2)
    outcome, started = run_stubs(monkeypatch, tmp_path, code, *fault, spot=spot)
    assert [each["codes"] for each in outcome.attempts] == [[44, 137], [0, 0]]
    assert f"rule {rule} for" in outcome.attempts[0]["why"]
    first, second = (each.ended for each in started[:2])
    assert first is not None
    assert second is not None
    assert second.conditions == (EVICTED,)
    assert first.at_s < second.at_s


def test_a_slow_host_works_now_and_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    works = (
        "import time\nend, worked = time.monotonic() + 3, 0\nwhile time.monotonic() < end:\n"
        " time.sleep(0.01); worked += 1\nprint(worked)"
    )
    outcome, _ = run_stubs(monkeypatch, tmp_path, works, *parse("slow", ("1@0.5s",), 2))
    assert outcome.code == 0
    folder = tmp_path / "run" / "simulated" / "attempt-1"
    usual, slow = (int((folder / f"host-{host}.log").read_text()) for host in (0, 1))
    assert 0.1 < slow / usual < 0.7


def test_hosts_do_not_outlive_a_simulation_that_is_killed(tmp_path: Path) -> None:
    package = simulated_host.__name__.partition(".")[0]
    module = f"import {simulated_host.__name__} as h, sys, time"
    waits = "h.runpy.run_module = lambda *_, **__: (print('runs', flush=True), time.sleep(60))"
    host = f"{module}; {waits}; h.main()"
    starter = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())],\n"
        " stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(simulated_host.__file__).parents[2])}
    assert (Path(environ["PYTHONPATH"]) / package).is_dir()
    words = [sys.executable, "-c", starter, host]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    end_s = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_pods_find_their_places_by_the_variables_of_the_manifest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_STEP_NODELIST", "other")  # of the machine that simulates
    monkeypatch.setenv("LD_LIBRARY_PATH", "/here")
    job = job_of(tmp_path, topology="2x4", accelerator="v5e", slices=2, env={"NAME": "value"})
    found = pods(jobset(job), Path("runs/here"))
    total = job.slice.hosts * 2
    assert [pod.devices for pod in found] == [job.slice.chips_per_host] * total
    for pod in found:
        environ = environment(pod, 4321, total)
        place = detect(environ)
        assert (place.count, place.index, place.launcher) == (total, pod.number, "JobSet")
        assert place.coordinator == "127.0.0.1:4321"
        assert environ["NAME"] == "value"
        assert not any(name.startswith(("MEGASCALE_", "SLURM_")) for name in environ)
        assert environ["JAX_PLATFORMS"] == "cpu"
        assert pod.arguments[-2:] == ["--run-dir", "runs/here"]
        assert pod.arguments.count("--run-dir") == 1
    gpus = jobset(job_of(tmp_path, accelerator="h100", topology="2"))
    assert environment(pods(gpus, tmp_path)[0], 4321, 2)["LD_LIBRARY_PATH"] == "/here"
    doctor = jobset(job_of(tmp_path, command="doctor"))
    assert pods(doctor, tmp_path)[0].arguments == ["doctor"]


def test_manifests_that_cannot_be_simulated_are_refused(tmp_path: Path) -> None:
    given = jobset(job_of(tmp_path))
    wrong = copy.deepcopy(given)
    env = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][
        0
    ]
    env["env"][0] = {"name": "JOBSET_NAME", "valueFrom": {"secretKeyRef": {"name": "x"}}}
    with pytest.raises(UserError, match="JOBSET_NAME from elsewhere"):
        pods(wrong, tmp_path)
    wrong = copy.deepcopy(given)
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] = 3
    with pytest.raises(UserError, match="process 0 of 4"):
        pods(wrong, tmp_path)
    with pytest.raises(UserError, match="take --hosts 2"):
        rehosted(jobset(job_of(tmp_path, slices=2)), 3)


@pytest.mark.parametrize(
    "text", ["", "1", "1@", "1@30", "2@30s", "-1@3s", "1@step", "a@3s", "1@1e3s"]
)
def test_faults_that_are_no_faults(text: str) -> None:
    with pytest.raises(UserError, match="--kill 1@30s"):
        parse("kill", (text,), 2)
