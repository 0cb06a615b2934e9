"""The emitted `train` command beside MaxText's, on the CPU in float32, same widths and batch.

    sh hooks/uv.sh run python benchmarks/maxtext.py [--rounds 3] [--steps 12]

Whole commands in turn, each seen from outside: seconds until the first loss is there, then the
median time between steps. Ours reads real text (prepared before; bytes, vocabulary 384), MaxText
its synthetic data. Twice MaxText: as it comes (full rematerialisation, scanned layers), and set
for speed. It comes into build/benchmarks/maxtext (about 2.3 GB); at the end, both environments'
packages are counted and weighed.
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from statistics import median

from grown import BUILD, UV, describe_machine, grow_project, table

MAXTEXT = "maxtext[tpu]==0.2.5"
LAYERS, WIDTH, HEADS, HEAD_DIM, MLP, VOCAB, ROWS, TOKENS = 6, 384, 6, 64, 1024, 384, 16, 256
THEIRS = (
    "run_name=bench hardware=cpu dataset_type=synthetic enable_checkpointing=false "
    "skip_jax_distributed_system=true dtype=float32 weight_dtype=float32 attention=dot_product "
    "logits_via_embedding=true use_qk_norm=true enable_goodput_recording=false "
    f"base_num_decoder_layers={LAYERS} base_emb_dim={WIDTH} base_num_query_heads={HEADS} "
    f"base_num_kv_heads={HEADS} head_dim={HEAD_DIM} base_mlp_dim={MLP} vocab_size={VOCAB} "
    f"per_device_batch_size={ROWS} max_target_length={TOKENS} base_output_directory={BUILD}/runs"
).split()
FAST = ["remat_policy=minimal_with_context", "scan_layers=false"]
OURS = (
    f"--model.layers {LAYERS} --model.scan-unroll {LAYERS} --model.width {WIDTH} "
    f"--model.heads {HEADS} --model.kv-heads {HEADS} --model.head-dim {HEAD_DIM} "
    f"--model.mlp-width {MLP} --data.batch-size {ROWS} --data.seq-len {TOKENS} "
    "--model.compute-dtype float32 --data.tokenizer byte --data.prepared-dir data/bytes "
    "--optim.optimizer adamw --log-every-steps 1 --eval-every-steps 0 --save-every-steps 0 "
    "--run-dir runs/maxtext"
).split()


def maxtext_python():
    """MaxText's own environment, made when it is missing."""
    folder = BUILD / "maxtext"
    if not (folder / "done").exists():
        subprocess.run([UV, "venv", "-q", "--clear", "--python", "3.12", folder], check=True)
        install = [UV, "pip", "install", "-q", "--python", folder / "bin" / "python", MAXTEXT]
        subprocess.run(install, check=True)
        (folder / "done").touch()
    return folder / "bin" / "python"


def watch(command, cwd, mark, steps):
    """(seconds to the first loss, seconds between steps) of a command that prints `mark` a step."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "DECOUPLE_GCLOUD": "TRUE"}
    began_s, seen_s, log = time.perf_counter(), [], []
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        timer = threading.Timer(900, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        for line in process.stdout:
            log.append(line)
            if mark in line:
                seen_s.append(time.perf_counter() - began_s)
                if len(seen_s) == steps:  # ours would go on to evaluate every held-out byte
                    os.killpg(process.pid, signal.SIGKILL)
        timer.cancel()
    if len(seen_s) < steps:
        raise SystemExit("".join(log[-20:]) + f"\n{command} stopped after {len(seen_s)} steps")
    return seen_s[0], median(b - a for a, b in itertools.pairwise(seen_s))


def follow(path):
    """A command that prints the lines of `path` as they come (our records go to a file)."""
    return f"(rm -rf {path.parent}; mkdir -p {path.parent}; touch {path}; tail -F -n +1 {path}) & "


def weigh(python):
    """Number of installed packages and their size, GB."""
    packages = next((python.parents[1] / "lib").glob("python3*")) / "site-packages"
    files = (path for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return len(list(packages.glob("*.dist-info"))), sum(p.stat().st_size for p in files) / 1e9


def main(rounds, steps):
    theirs = [maxtext_python(), "-m", "maxtext.trainers.pre_train.train"]
    configs = next((BUILD / "maxtext" / "lib").glob("python3*/site-packages/maxtext/configs"))
    theirs += [configs / "base.yml", *THEIRS, f"steps={steps}"]
    project = grow_project()
    runtime = {"UV_PROJECT_ENVIRONMENT": str(BUILD / "acorn-runtime")}
    subprocess.run(
        [UV, "sync", "-q", "--no-dev"], cwd=project, env=os.environ | runtime, check=True
    )
    ours = [BUILD / "acorn-runtime" / "bin" / "python", "-m", "acorn"]
    metrics = project / "runs" / "maxtext" / "metrics.jsonl"
    subprocess.run([*ours, "prepare", "demo", *OURS], cwd=project, check=True)
    train = " ".join(map(str, [*ours, "train", "demo", *OURS, "--steps", steps + 5]))
    shell = ["bash", "-c", follow(metrics) + train + " >/dev/null"]
    commands = {
        "ours": (shell, project, '"loss"'),
        "MaxText": (theirs, BUILD, "completed step"),
        "MaxText, set for speed": ([*theirs, *FAST], BUILD, "completed step"),
    }
    seen = {name: [] for name in commands}
    for _ in range(rounds):
        for name, (command, cwd, mark) in commands.items():
            seen[name].append(watch(command, cwd, mark, steps))
            print(name, seen[name][-1], flush=True)
            shutil.rmtree(metrics.parent, ignore_errors=True)
    rows = []
    for name, found in seen.items():
        pairs = zip(found, seen["ours"], strict=True)
        ratio = median(theirs_s / ours_s for (_, theirs_s), (_, ours_s) in pairs)
        first_s, rate = median(f for f, _ in found), ROWS * TOKENS / median(s for _, s in found)
        count, size = weigh((ours if name == "ours" else theirs)[0])
        rows.append([name, f"{rate:,.0f}", f"{ratio:.2f}", f"{first_s:.0f}", count, f"{size:.2f}"])
    table(["", "tokens/s", "ours / it", "s to first loss", "packages", "GB"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    print(describe_machine())
    main(options.rounds, options.steps)
