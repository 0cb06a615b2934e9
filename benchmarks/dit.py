"""CPU images/s of the emitted DiT beside a PyTorch DiT of the same architecture and sizes.

    sh hooks/uv.sh run python benchmarks/dit.py [demo] [mnist] [--rounds 10] [--one-core]

Training: float32, draws, flow-matching loss, clipping, AdamW and four averages, on a fixed batch.
Sampling: 25 steps of Heun's method without guidance, in batches of the training's size. Long-lived
processes of two threads are driven in turn; ratios are medians over rounds. Before, our parameters
are copied into PyTorch; output, samples and eight steps of training must agree, or nothing is
measured. PyTorch comes into build/benchmarks/torch (Python 3.11, torch CPU).
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from statistics import median

from grown import BUILD, Worker, alternate, describe_machine, grow_project, ratio, table
from torch_gpt import KEEP_MEMORY, torch_python

HERE = Path(__file__).resolve().parent
SIZES = {  # a preset, images of a draw, timed steps of training a turn
    "demo": {"images": 256, "steps": 20},
    "mnist": {"images": 32, "steps": 1},
}
THEIRS = {"eager": {}, "compiled": {"compiled": True}}
# Of a number of the output and of a sample, of a loss; of what eight steps moved, as a part of it.
ALLOWED = {"output": 1e-4, "images": 1e-3, "losses": 1e-3}
ALLOWED_MOVED = 1e-2


def compare(size, options, pythons):
    """Everything about one size."""
    images, steps, weights = SIZES[size]["images"], SIZES[size]["steps"], BUILD / "dit.npz"
    # XLA counts the cores that it may run on; PyTorch is told as well.
    cores = f"0-{options.threads - 1}"
    pin = ["taskset", "-c", cores] if shutil.which("taskset") else []
    workers = {"ours": Worker(*pin, pythons["ours"], HERE / "our_dit.py")}
    try:
        config = workers["ours"].ask("build", preset=size, images=images)
        workers["ours"].ask("dump", path=str(weights))
        found = {"parameters": config["parameters"], "batch_size": config["batch_size"]}
        found |= {"images_a_draw": images, "parity": {}, "versions": [config["versions"]]}
        for name, how in THEIRS.items():
            # The allocator as host_memory.py sets it for us: no default, but the fairer peer.
            environment = KEEP_MEMORY | {"OMP_NUM_THREADS": str(options.threads)}
            workers[name] = Worker(*pin, pythons["torch"], HERE / "torch_dit.py", **environment)
            built = workers[name].ask("build", config=config, weights=str(weights), **how)
            found["versions"] = sorted({*found["versions"], built.pop("versions")})
            found["parity"][name] = built
            print(f"{size}, {name}, differences: {show(built)}", flush=True)
            for what, difference in built.items():
                allowed = ALLOWED.get(what, ALLOWED_MOVED)
                if not difference <= allowed:
                    raise SystemExit(f"not the same: {what} differs by {difference}, > {allowed}")
        clock = "process_time" if options.one_core else "perf_counter"
        for what, count in (("train", steps), ("sample", 1)):
            alternate(workers, 1, count, what=what)  # warm
            seconds = alternate(workers, options.rounds, count, what=what, clock=clock)
            found[what] = rates(seconds, config["batch_size"] if what == "train" else images)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def rates(seconds, images):
    """Medians of images/s, and of the rounds' ratios."""
    return {
        "seconds": seconds,
        "images_per_s": {side: images / median(times) for side, times in seconds.items()},
        "ours_over": {name: ratio(seconds[name], seconds["ours"]) for name in THEIRS},
    }


def show(differences):
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items())


def print_table(sizes):
    rows = [
        [
            f"`{size}`, {found['parameters']:,} parameters",
            what,
            *(f"{rate:,.0f}" for rate in found[what]["images_per_s"].values()),
            *(f"{value:.2f}" for value in found[what]["ours_over"].values()),
        ]
        for size, found in sizes.items()
        for what in ("train", "sample")
    ]
    sides = [f"{side}, images/s" for side in ("ours", *THEIRS)]
    table(["size", "what", *sides, *(f"ours/{name}" for name in THEIRS)], rows)


def main(options):
    pythons = {
        "ours": grow_project("diffusion") / ".venv" / "bin" / "python",
        "torch": torch_python(),
    }
    results = {"machine": describe_machine(), "threads": options.threads}
    results |= {"cpu_time": options.one_core, "sizes": {}}
    print(results["machine"], flush=True)
    for size in options.sizes or SIZES:
        results["sizes"][size] = compare(size, options, pythons)
    results["load_after"] = os.getloadavg()[0]
    print_table(results["sizes"])
    (BUILD / "dit.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--one-core", action="store_true", help="CPU time on one: for busy machines"
    )
    chosen = parser.parse_args()
    if chosen.one_core:
        chosen.threads = 1
    main(chosen)
