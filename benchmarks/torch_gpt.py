"""CPU tokens/s of the emitted training step beside a plain PyTorch GPT of the same architecture.

    sh hooks/uv.sh run python benchmarks/torch_gpt.py [SIZE ...] [--rounds 12] [--bfloat16]

Two or more long-lived processes are driven in turn; the ratio is the median over rounds. Before,
our parameters are copied into the PyTorch model and logits and losses compared, then the losses of
eight steps of training. PyTorch comes into build/benchmarks/torch (Python 3.11, torch CPU).
"""

import argparse
import subprocess
from statistics import median

from grown import BUILD, Worker, alternate, describe_machine, grow_project, ratio, table

HERE = __file__.rpartition("/")[0]
TORCH = "torch==2.13.0"
SIZES = {
    "0.8M": {
        "vocab": 128,
        "model": {"layers": 4, "width": 128, "heads": 4, "kv_heads": 4, "head_dim": 32}
        | {"mlp_width": 344, "scan_unroll": 4},
        "data": {"batch_size": 32, "seq_len": 256},
    },
    "10.7M": {
        "vocab": 128,
        "model": {"layers": 6, "width": 384, "heads": 6, "kv_heads": 6, "head_dim": 64}
        | {"mlp_width": 1024, "scan_unroll": 6},
        "data": {"batch_size": 16, "seq_len": 256},
    },
    "demo": {"vocab": 4096, "preset": "demo", "model": {"compute_dtype": "float32"}},
}


def torch_python():
    """PyTorch's own environment, made when it is missing."""
    folder = BUILD / "torch"
    if not (folder / "done").exists():
        subprocess.run(["python3.11", "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", TORCH, "numpy"]
        subprocess.run(pip, check=True)
        (folder / "done").touch()
    return folder / "bin" / "python"


def compare(name, size, options):
    """The row of one size."""
    rounds, steps = options.rounds, options.steps
    ours_python, theirs_python = grow_project() / ".venv" / "bin" / "python", torch_python()
    weights = str(BUILD / "weights.npz")
    pin = ["taskset", "-c", "0"] if options.one_core else []
    workers = {"ours": Worker(*pin, ours_python, f"{HERE}/our_step.py")}
    config = workers["ours"].ask("build", **size)
    workers["ours"].ask("dump", path=weights)
    variants = {"eager": {}, "eager, memory kept": {}}
    variants |= {} if options.no_compile else {"compiled": {"compiled": True}}
    if options.bfloat16:
        workers["ours bf16"] = Worker(*pin, ours_python, f"{HERE}/our_step.py")
        bf16 = size.get("model", {}) | {"compute_dtype": "bfloat16"}
        workers["ours bf16"].ask("build", **size | {"model": bf16})
        variants["eager bf16"] = {"bfloat16": True}
    for variant, how in variants.items():
        environment = KEEP_MEMORY if "kept" in variant else {}
        workers[variant] = Worker(*pin, theirs_python, f"{HERE}/torch_model.py", **environment)
        built = workers[variant].ask("build", config=config, weights=weights, **how)
        print(f"{name}, {variant}: {built}")
        assert built["logits"] < 1e-3, "the two models are not the same function"
    clock = "process_time" if options.one_core else "perf_counter"
    alternate(workers, 2, steps)  # warm, and early enough that rounding has not yet grown
    losses = {variant: worker.ask("loss") for variant, worker in workers.items()}
    print(f"{name}: loss after {2 * (steps + 1)} steps: {losses}; {config['versions']}")
    seconds = alternate(workers, rounds, steps, clock=clock)
    for worker in workers.values():
        worker.close()
    tokens = config["batch_size"] * config["seq_len"]
    rates = [f"{tokens / median(seconds[v]):,.0f}" if v in seconds else "" for v in COLUMNS]
    ratios = [
        f"{ratio(seconds[theirs], seconds[ours]):.2f}" if theirs in seconds else ""
        for ours, theirs in (
            *(("ours", theirs) for theirs in ("eager", "eager, memory kept", "compiled")),
            ("ours bf16", "eager bf16"),
        )
    ]
    return [name, f"{config['parameters'] / 1e6:.2f}M", *rates, *ratios]


COLUMNS = ("ours", "eager", "eager, memory kept", "compiled", "ours bf16", "eager bf16")
# What host_memory.py does for us, given to PyTorch too: no user's default, but the fairer peer.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**60),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--one-core", action="store_true", help="CPU time on one: for busy machines"
    )
    options = parser.parse_args()
    print(describe_machine())
    rows = [compare(name, SIZES[name], options) for name in options.sizes or SIZES]
    ratios = ("ours/eager", "ours/eager kept", "ours/compiled", "bf16 ours/eager")
    table(["size", "parameters", *(f"{c}, tokens/s" for c in COLUMNS), *ratios], rows)
