"""What the benchmarks share: a freshly grown project, processes driven in turn, a table.

Nothing here is measured. Standard library only at module level: the workers import it too, in
environments of their own (PyTorch's is Python 3.11).
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "benchmarks"
UV = os.environ.get("UV", "uv")  # set by `uv run`


def grow_project(kind="llm"):
    """The working tree's kind with default answers, and its .venv.

    Of llm it is `build/benchmarks/acorn`; another kind's name follows a dash.
    """
    sys.path.insert(0, str(ROOT / "hooks"))
    from demo import grow

    project = BUILD / ("acorn" if kind == "llm" else f"acorn-{kind}")
    with tempfile.TemporaryDirectory() as scratch:
        grow(kind, Path(scratch) / "acorn")
        shutil.rmtree(project / "src", ignore_errors=True)
        shutil.copytree(Path(scratch) / "acorn", project, dirs_exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    subprocess.run([UV, "sync", "--quiet"], cwd=project, env=environment, check=True)
    return project


def enter_project():
    """Start this script again inside a freshly grown project, unless it runs there already."""
    if importlib.util.find_spec("acorn") is None:
        project, script = grow_project(), Path(sys.argv[0]).resolve()
        python = str(project / ".venv" / "bin" / "python")
        os.chdir(project)
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.execv(python, [python, str(script), *sys.argv[1:]])
    from acorn.runtime.host_memory import keep_freed_memory

    keep_freed_memory()  # as the console script does


class WorkerEnded(SystemExit):
    """A worker's process ended instead of answering."""


class Worker:
    """A process that answers each JSON line it is sent with one.

    log: a file for what it prints. limit_s: it is killed so many seconds after its start.
    """

    def __init__(self, *command, log=None, limit_s=None, **environment):
        with contextlib.ExitStack() as opened:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=opened.enter_context(open(log, "w")) if log else None,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
            )
        self.timer = threading.Timer(limit_s or 1e6, self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def ask(self, call, **arguments):
        """Have `call(**arguments)` run there; what it returns."""
        try:
            self.process.stdin.write(json.dumps([call, arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended before it was asked; the empty answer says so
        line = self.process.stdout.readline()
        if not line:
            raise WorkerEnded(f"{self.process.args} ended with code {self.process.wait()}")
        return json.loads(line)

    def close(self):
        with contextlib.suppress(BrokenPipeError):  # it ended on its own, as `ask` has reported
            self.process.stdin.close()
        self.process.wait()
        self.timer.cancel()


def serve(*functions):
    """The other end of `Worker`: answer until stdin ends. Prints of libraries go to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # those of C++ too
    by_name = {function.__name__: function for function in functions}
    for line in sys.stdin:
        call, arguments = json.loads(line)
        print(json.dumps(by_name[call](**arguments)), file=answers, flush=True)


def alternate(workers, rounds, steps, **how):
    """{name: worker} -> {name: seconds a step in each round}, every worker once a round."""
    seconds = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.ask("run", steps=steps, **how))
    return seconds


def ratio(of, to):
    """Median of the rounds' ratios: a slow spell of the machine hits both sides of a round."""
    return median(a / b for a, b in zip(of, to, strict=True))


def describe_machine():
    """One line: date, CPU, cores, load before the run."""
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    name = names[0].split(":")[1].strip() if names else "unknown CPU"
    load = os.getloadavg()[0]
    return f"{time.strftime('%Y-%m-%d %H:%M')}, {name}, {os.cpu_count()} cores, load {load:.2f}"


def table(header, rows):
    """Print a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
