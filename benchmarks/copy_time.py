"""`copier copy` of the kind beside Copier's own time for as many empty files.

    sh hooks/uv.sh run python benchmarks/copy_time.py [--rounds 7]

Both templates are plain folders (no git clone in either), rendered in this process in turn with
default answers. The empty one has the same number of files at the same paths and no questions.
"""

import argparse
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import copier
from grown import ROOT, describe_machine, ratio

sys.path.insert(0, str(ROOT / "hooks"))


def measure(rounds):
    """Print both times and the median of their ratios."""
    from link import snapshot

    with tempfile.TemporaryDirectory() as scratch:
        ours, empty, into = (Path(scratch) / name for name in ("ours", "empty", "into"))
        ours.mkdir()
        snapshot(ours)
        answers = {"kind": "llm"}
        render(ours, into / "first", answers)
        rendered = [p.relative_to(into / "first") for p in (into / "first").rglob("*")]
        files = [path for path in rendered if (into / "first" / path).is_file()]
        for path in files:
            (empty / path).parent.mkdir(parents=True, exist_ok=True)
            (empty / path).touch()
        # Copier leaves copier.yml, .git and so on out by itself; none is among the files.
        ours_s = []
        empty_s = []
        for number in range(rounds):
            ours_s.append(render(ours, into / f"ours{number}", answers))
            empty_s.append(render(empty, into / f"empty{number}", {}))
        last = into / f"empty{rounds - 1}"
        assert len(files) == sum(p.is_file() for p in last.rglob("*"))
    print(f"{len(files)} files, copier {version('copier')}")
    print(f"kind llm {median(ours_s):.3f} s, empty files {median(empty_s):.3f} s, ", end="")
    print(f"ratio {ratio(ours_s, empty_s):.2f}")


def render(template, into, answers):
    """Seconds of one `copier copy`."""
    began_s = time.perf_counter()
    copier.run_copy(str(template), into, data=answers, defaults=True, quiet=True)
    return time.perf_counter() - began_s


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    print(describe_machine())
    measure(parser.parse_args().rounds)
