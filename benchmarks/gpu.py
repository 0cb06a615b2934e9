"""One GPU: the emitted training step beside a `torch.compile` GPT with flash attention.

    bash benchmarks/on_gpu.sh                            (on a machine without a package index)
    python3 benchmarks/gpu.py [--rehearse] [--out FILE] [--budget-s 540] [--show FILE]

Trains `gpt2-124m` and a 1.5B shape at 1,024 and 4,096 tokens a row. Each turn is a process of its
own, so that the other side has the whole memory, and turns alternate; what the compilers keep on
disk makes later turns short. Also: peak memory, seconds to the first loss, the largest operations,
the cost of an asynchronous save, and the emitted `train` command from a cold start. The JSON is
rewritten after each turn, and the same command adds rounds to it. What fails is recorded there.
Runs on what is installed: JAX and PyTorch in one Python, or `--torch PYTHON` for the other.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gpu_cases import CASES, REHEARSED, VARIANTS
from gpu_tables import print_tables
from grown import ROOT, Worker, WorkerEnded, describe_machine

HERE = Path(__file__).resolve().parent
FOLDER = ROOT / "build" / "gpu"  # what wheels.py makes; logs and compiled programs come beside
PROGRAMS = {"ours": (sys.executable, "our_step.py"), "torch": (sys.executable, "torch_model.py")}
SIDES = tuple(PROGRAMS)
EXTRA_STEPS = {"profile": 2, "save": 4}
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemory")


class Bench:
    """The results so far, and the time that is left."""

    def __init__(self, options):
        self.options, self.began_s = options, time.monotonic()
        self.out, self.source = Path(options.out), Path(options.project) / "src"
        kept = self.out.exists() and not options.fresh
        self.results = {"cases": {}, "problems": [], "rounds": 0}
        if kept:
            self.results |= json.loads(self.out.read_text())
            old = self.results["problems"]  # what was not tried may be now
            self.results["problems"] = [line for line in old if "not tried" not in line]
        self.gpu = "none: a rehearsal on the CPU" if options.rehearse else nvidia_smi()
        self.memory_gb = (
            0.0 if options.rehearse else float(self.gpu.split(", ")[1].split()[0]) / 1e3
        )
        self.results |= {"machine": describe_machine(), "gpu": self.gpu}
        print(self.results["machine"], self.gpu, sep="; ", flush=True)

    def left_s(self):
        return self.options.budget_s - (time.monotonic() - self.began_s)

    def write(self):
        self.out.parent.mkdir(parents=True, exist_ok=True)
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1))
        part.replace(self.out)
        if "OUT" in os.environ:  # what the device machine sends back
            shutil.copy(self.out, os.environ["OUT"])

    def problem(self, what, why):
        print(f"{what}: {why}", flush=True)
        self.results["problems"].append(f"{what}: {why}")
        self.write()

    def environment(self, side):
        """What a side's processes find: packages, device, and the programs compiled before."""
        common = {"JAX_PLATFORMS": "cpu" if self.options.rehearse else "cuda,cpu"}
        if side == "torch":
            return common | {
                "PYTHONPATH": "",  # PyTorch as it is installed
                "TORCHINDUCTOR_CACHE_DIR": str(FOLDER / "cache" / "inductor"),
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            }
        given = os.environ.get("PYTHONPATH")
        return common | {
            "JAX_COMPILATION_CACHE_DIR": str(FOLDER / "cache" / "jax"),
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",  # JAX's own default leaves a quarter unused
            "PYTHONPATH": f"{self.source}:{given}" if given else str(self.source),
        }

    @contextlib.contextmanager
    def worker(self, side, log):
        """A fresh process of a side, killed when the time is over; it leaves no memory taken."""
        python, script = PROGRAMS[side]
        command = [self.options.torch if side == "torch" else python, HERE / script]
        limit_s = max(5.0, self.left_s())
        worker = Worker(*command, log=log, limit_s=limit_s, **self.environment(side))
        try:
            yield worker
        finally:
            worker.process.kill()
            worker.close()

    def turn(self, side, case, extras=(), attention="flash"):
        """A process compiles the step, times it, and adds a "profile" or "save" that is missing.

        Where memory runs out, again with half the micro-batch.
        """
        found = self.results["cases"].setdefault(case.name, {"turns": {}, "micro_tokens": {}})
        name = side if attention == "flash" else f"{side}, {attention}"
        what, needed_s = f"{case.name}, {name}", self.options.least_s
        if found["turns"].get(name):
            needed_s = 1.1 * found["turns"][name][-1]["turn_s"]
        tokens = found["micro_tokens"].get(side) or case.micro_tokens(self.memory_gb)
        log = log_file(f"{what}.txt")
        while self.left_s() > needed_s:
            began_s, measured = time.monotonic(), False
            try:
                with self.worker(side, log) as worker:
                    seen = self.measure(worker, side, case, tokens, attention, found)
                    measured = True
                    found["micro_tokens"][side] = tokens
                    found["turns"].setdefault(name, []).append(seen)
                    self.tell(what, seen, found["facts"])
                    for extra in extras:
                        if f"{extra}, {side}" not in found:
                            found[f"{extra}, {side}"] = ask_extra(worker, extra)
                            self.write()
                seen["turn_s"] = time.monotonic() - began_s
                return self.write()
            except WorkerEnded as ended:
                text = log.read_text(errors="replace")
                why = (reason(text) or ended) if self.left_s() > 1 else "stopped: no time was left"
                self.problem(f"{what}, {tokens:,} tokens at once", why)
                full = any(words in text for words in OUT_OF_MEMORY)
                if measured or not full or tokens <= case.seq_len:
                    return None
                tokens //= 2
        return self.problem(what, f"not tried: {self.left_s():.0f} s are left")

    def measure(self, worker, side, case, tokens, attention, found):
        """Compile, first loss, seconds a step: what a process of one side says."""
        began_s, settings = time.monotonic(), case.settings(tokens)
        if side == "torch":
            parts = {"micro_batches": settings["optim"]["micro_batches"]}
            device = {"device": "cpu"} if self.options.rehearse else {"device": "cuda"}
            how = device | {"attention": attention, "compiled": True, "bfloat16": True}
            built = worker.ask("build", config=found["facts"] | parts, **how)
        else:
            found["facts"] = worker.ask("describe", **settings)
            built = worker.ask("build", **settings)
        first_loss = worker.ask("advance", steps=1)
        first_loss_s = time.monotonic() - began_s
        steps = min(200, max(2, round(self.options.turn_s / worker.ask("run", steps=1))))
        step_s = worker.ask("run", steps=steps)
        return {
            "micro_tokens": tokens,
            "first_loss": first_loss,
            "first_loss_s": first_loss_s,
            "compile_s": built["compile_s"],
            "versions": built["versions"],
            "steps": steps,
            "step_s": step_s,
            "tokens_per_s": case.tokens_per_step / step_s,
            "peak_bytes": worker.ask("memory"),
            "planned_bytes": built.get("memory_bytes"),
            "turn_s": time.monotonic() - began_s,
        }

    def tell(self, what, seen, facts):
        """A line about a turn, with the MFU by the emitted peaks: the same FLOPs for both sides."""
        sys.path.insert(0, str(self.source))
        from acorn.records import hardware

        share, formula = hardware.mfu(
            facts["flops_per_step"], seen["step_s"], 1, facts["device_kind"]
        )
        seen |= {"mfu": share, "mfu_formula": formula}
        print(
            f"{what}: {seen['tokens_per_s']:,.0f} tokens/s over {seen['steps']} steps, "
            f"{seen['micro_tokens']:,} tokens at once; first loss {seen['first_loss']:.3f} after "
            f"{seen['first_loss_s']:.1f} s ({seen['compile_s']:.1f} s to compile); {formula}",
            flush=True,
        )
        self.write()

    def command(self):
        """The emitted `train` from a cold start: seconds to the first recorded loss, and in all."""
        if self.left_s() < self.options.least_s:
            return self.problem("acorn train demo", f"not tried: {self.left_s():.0f} s are left")
        scratch, log = FOLDER / "scratch", log_file("command.txt")
        shutil.rmtree(scratch, ignore_errors=True)
        words = ["train", "demo", "--steps", 30, "--log-every-steps", 1]
        words += ["--run-dir", scratch / "run", "--data.prepared-dir", scratch / "data"]
        words += ["--data.paths", scratch / "text", "--data.vocab-size", 512]
        (scratch / "text").mkdir(parents=True)
        for file in self.source.rglob("*.py"):
            shutil.copy(file, scratch / "text" / f"{file.parent.name}-{file.stem}.txt")
        if self.options.rehearse:
            words += ["--data.seq-len", 64]
        began_s, first_s, records = time.monotonic(), None, scratch / "run" / "metrics.jsonl"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "acorn", *map(str, words)],
                cwd=self.options.project,
                env=os.environ | self.environment("ours"),
                stdout=file,
                stderr=file,
            )
            while process.poll() is None and self.left_s() > 0:
                if first_s is None and records.exists() and records.stat().st_size:
                    first_s = time.monotonic() - began_s
                time.sleep(0.05)
            process.kill()
        seen = {"code": process.wait(), "first_loss_s": first_s}
        self.results["command"] = seen | {"whole_s": time.monotonic() - began_s}
        if seen["code"]:
            self.problem("acorn train demo", reason(log.read_text(errors="replace")))
        shutil.rmtree(scratch, ignore_errors=True)
        return self.write()


def ask_extra(worker, name):
    """A profile or a save of a process that has its step compiled."""
    folder = FOLDER / "scratch" / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return worker.ask(name, folder=str(folder), steps=EXTRA_STEPS[name])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def log_file(name):
    (FOLDER / "logs").mkdir(parents=True, exist_ok=True)
    return FOLDER / "logs" / name.replace(" ", "")


def nvidia_smi():
    """Name, memory and driver of the GPU."""
    if shutil.which("nvidia-smi") is None:
        raise SystemExit("no nvidia-smi here: --rehearse runs small shapes on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def reason(log):
    """What a log says of an error: the last line that starts like one, else its last three."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return (named[-1] if named else " ".join(lines[-3:]))[:400]


def main(options):
    """First what matters most; whatever the budget does not reach is recorded as not tried."""
    bench = Bench(options)
    if options.variants:
        for case in VARIANTS:
            bench.turn("ours", case, ("profile",))
        print_tables(bench.results)
        return 0
    cases = REHEARSED if options.rehearse else CASES
    for _ in range(options.rounds):
        number = bench.results["rounds"]
        bench.results["rounds"] += 1
        for place, case in enumerate(cases):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                # Of the larger state a save is slow: only when each case has been seen once.
                saves = side == "ours" and (place == 0 or (place == 1 and number > 0))
                bench.turn(side, case, ("profile", "save") if saves else ("profile",))
            if place == 0 and "command" not in bench.results:
                bench.command()
    for case in cases if not options.rehearse else []:  # the kernel that ours takes
        bench.turn("torch", case, attention="cudnn")
    print_tables(bench.results)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=ROOT / "build" / "gpu.json", help="copied to $OUT too")
    parser.add_argument("--rehearse", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds in all")
    parser.add_argument("--least-s", type=float, default=45.0, help="not begun with less left")
    parser.add_argument("--turn-s", type=float, default=6.0, help="timed seconds of a turn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--torch", default=sys.executable, help="Python that has PyTorch")
    parser.add_argument("--project", default=FOLDER / "acorn", help="a grown project")
    parser.add_argument("--variants", action="store_true", help="settings of our side, once each")
    parser.add_argument("--fresh", action="store_true", help="start a new JSON")
    parser.add_argument("--show", metavar="JSON", help="print the tables of such a file, no more")
    chosen = parser.parse_args()
    if chosen.show:
        print_tables(json.loads(Path(chosen.show).read_text()))
    else:
        sys.exit(main(chosen))
