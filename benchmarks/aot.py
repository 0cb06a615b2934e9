"""Ahead-of-time compilation of the kind tpu for 256 and 512 chips that are not there.

    sh hooks/uv.sh run python benchmarks/aot.py [PRESET@TOPOLOGY[@SLICES] ...]

Each in a process of its own, by the emitted `plan --compile --json`: seconds of the compiler, of
the whole command, and the peak memory of the process, beside what the compiler says of the step.
Needs libtpu, which it installs, and no TPU.
"""

import argparse
import json
import os
import resource
import subprocess
import time

from grown import UV, describe_machine, grow_project, table

CASES = ("slice-1b@v5e:16x16", "two-slices-1b@v5e:16x16@2")
GIB = 2**30


def measure(project, case):
    """A row of the table: the case, what compiling took, what came out."""
    preset, topology, slices = (*case.split("@"), "1")[:3]
    command = [project / ".venv/bin/acorn", "plan", preset, "--compile", "--json"]
    command += ["--topologies", topology, "--slices", slices]
    began_s = time.perf_counter()
    answer = subprocess.run(command, cwd=project, stdout=subprocess.PIPE, text=True)
    spent_s = time.perf_counter() - began_s
    # Of all children so far, so the cases come smallest first.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GIB
    found = json.loads(answer.stdout)
    if found["refused"]:
        raise SystemExit(f"{case}: {found['refused']}")
    (row,) = found["rows"]
    bounds = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in row["bounds_s"].items())
    needed = "?" if row["needed_bytes"] is None else f"{row['needed_bytes'] / GIB:.2f}"
    return [
        case,
        row["chips"],
        f"{row['compile_s']:.0f}",
        f"{spent_s:.0f}",
        f"{peak:.1f}",
        f"{needed} of {row['limit_bytes'] / GIB:.2f}",
        f"{row['dcn_bytes_per_host'] / 1e6:.1f}",
        bounds,
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES)
    options = parser.parse_args()
    project = grow_project("tpu")
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    subprocess.run(
        [UV, "sync", "--quiet", "--extra", "tpu"], cwd=project, env=environment, check=True
    )
    print(describe_machine())
    heads = ["case", "chips", "compile, s", "command, s", "peak, GiB", "GiB a device"]
    heads += ["MB a host to other slices", "bounds of a step, ms"]
    table(heads, [measure(project, case) for case in options.cases])
