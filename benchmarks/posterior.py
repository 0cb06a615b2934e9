"""Effective draws a second of the kind bayes beside NumPyro's MCMC, blackjax, PyStan and nutpie.

    sh hooks/uv.sh run python benchmarks/posterior.py [sampling] [fits] [devices] [--rounds 3]

sampling: four posteriors (posterior_models.py), 4 chains of 1000 draws after as many of warm-up, an
aim of 0.8; long-lived processes on two cores are driven in turn, each round with a seed of its own,
and figures are medians of the rounds. Least bulk ESS is over all parameters; CPU seconds are of the
process and its children, a build from the start of the process on; gradients are those of kept
draws. No row is printed of a side whose means
are not those of posteriordb (of ours, where it has none): |z| < 5. fits: whole fits and
calibrations of eight schools in fresh processes. devices: chains on fake CPU devices.
Peers come into build/benchmarks/bayes-peers (Python 3.12); one that pip does not find is left out.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from grown import BUILD, ROOT, Worker, WorkerEnded, describe_machine, grow_project, ratio, table

HERE = Path(__file__).resolve().parent
PEERS = {  # what pip is asked for
    "numpyro": ["numpyro==0.22.0"],
    "blackjax": ["blackjax==1.7.1"],
    "pystan": ["pystan==3.14.0", "setuptools"],
    "nutpie": ["nutpie==0.16.11", "pymc==6.4.0"],
    "simuk": ["simuk==0.3.0"],
}
SIDES = {
    "ours": ("ours", {"metric": "diagonal"}),
    "ours, low rank": ("ours", {"metric": "low_rank"}),
    "numpyro.MCMC": ("numpyro", {"method": "sequential"}),
    "numpyro.MCMC, vectorized": ("numpyro", {"method": "vectorized"}),
    "blackjax": ("blackjax", {"metric": "diagonal"}),
    "blackjax, low rank": ("blackjax", {"metric": "low_rank"}),
    "PyStan": ("pystan", {}),
    "nutpie + PyMC": ("nutpie", {"adaptation": "diag"}),
}
POSTERIORS = {
    "eight schools": "eight_schools-eight_schools_noncentered",
    "radon": "radon_mn",
    "logistic": "logistic",
    "lynx and hares": "hudson_lynx_hare-lotka_volterra",
}
ALLOWED_Z = 5
SIMULATIONS, OF_SIMUK = 200, 4
CHAINS, DEVICES = 8, (1, 2, 4, 8)
CORES = ["taskset", "-c", "0,1"] if shutil.which("taskset") else []


def peers_python():
    """The peers' environment, made when it is missing, and those that are in it."""
    folder = BUILD / "bayes-peers"
    python, done = folder / "bin" / "python", folder / "done.json"
    if not done.exists():
        subprocess.run(["python3.12", "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "arviz-stats"], check=True)
        found = [n for n, wanted in PEERS.items() if not subprocess.run([*pip, *wanted]).returncode]
        done.write_text(json.dumps(found))
    found = json.loads(done.read_text())
    for name in PEERS.keys() - set(found):
        print(f"left out: pip has found no {name}", flush=True)
    return python, found


def command_of(side, pythons):
    worker = "our_posterior.py" if side == "ours" else "peer_posterior.py"
    return [*CORES, pythons["ours" if side == "ours" else "peers"], HERE / worker]


def read_reference(name):
    """Means of posteriordb with their standard errors; empty where it has none."""
    file = ROOT / "tests" / "posteriordb" / name / "mean_value.json"
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    rows = zip(found["names"], found["mean_value"], found["mcse_mean"], strict=True)
    return {name: (mean, mcse) for name, mean, mcse in rows}


def largest_z(means, reference):
    """Of the differences of means over their Monte Carlo errors."""
    rows = [(*means[name], *reference[name]) for name in means]
    return max(abs(a - b) / (own**2 + other**2) ** 0.5 for a, own, b, other in rows)


def sample(posterior, options, pythons, installed):
    """Every side's rounds of one posterior."""
    name, workers, found = POSTERIORS[posterior], {}, {}
    try:
        for side, (what, how) in SIDES.items():
            if what != "ours" and what not in installed:
                continue
            log = BUILD / "posterior.log"
            began = time.perf_counter()
            workers[side] = Worker(*command_of(what, pythons), log=log)
            how = how | ({} if what == "ours" else {"side": what})
            try:
                built = workers[side].ask("build", name=name, draws=options.draws, **how)
            except WorkerEnded as ended:
                print(f"left out: {posterior}, {side}: {ended}; see {log}", flush=True)
                workers.pop(side).close()
                continue
            built["wall"] = time.perf_counter() - began
            found[side] = {"build": built, "rounds": []}
            print(f"{posterior}, {side}: built in {built['cpu']:.1f} CPU s", flush=True)
        for seed in range(1, options.rounds + 1):
            for side, worker in workers.items():
                found[side]["rounds"].append(worker.ask("run", seed=seed))
    finally:
        for worker in workers.values():
            worker.close()
    ours = found["ours"]["rounds"]
    return {side: judged(posterior, side, figures, ours) for side, figures in found.items()}


def judged(posterior, side, found, ours):
    """With the medians, unless another posterior was drawn from."""
    rounds = found["rounds"]
    reference = read_reference(POSTERIORS[posterior]) or ours[0]["means"]
    apart = [largest_z(r["means"], reference) for r in rounds if r["means"] is not reference]
    if not (z := max(apart, default=0.0)) < ALLOWED_Z:
        print(f"not the same: means of {posterior} by {side} differ by {z:.1f} errors", flush=True)
        return found | {"refused": z}
    figures = {what: median(r[what] for r in rounds) for what in ("cpu", "wall", "ess")}
    figures["ess_per_cpu_s"] = median(r["ess"] / r["cpu"] for r in rounds)
    figures["ess_per_s"] = median(r["ess"] / r["wall"] for r in rounds)
    figures["ess_per_1000_gradients"] = median(1000 * r["ess"] / r["gradients"] for r in rounds)
    costs = [[r["cpu"] / r["ess"] for r in sides] for sides in (rounds, ours)]
    return found | figures | {"z": z, "ours_over": ratio(*costs)}


def sampling(options, pythons, installed):
    found = {}
    for posterior in options.posteriors or POSTERIORS:
        found[posterior] = sample(posterior, options, pythons, installed)
        print_sampling({posterior: found[posterior]})
    return found


def print_sampling(found):
    heads = ["posterior", "side", "build, CPU s", "run, CPU s", "run, s", "least ESS"]
    heads += ["ESS / CPU s", "ESS / s", "ESS / 1000 gradients", "largest z", "ours / it"]
    rows = [
        [posterior, side, f"{x['build']['cpu']:.1f}", f"{x['cpu']:.2f}", f"{x['wall']:.2f}"]
        + [f"{x[what]:,.0f}" for what in ("ess", "ess_per_cpu_s", "ess_per_s")]
        + [f"{x[what]:.2f}" for what in ("ess_per_1000_gradients", "z", "ours_over")]
        for posterior, sides in found.items()
        for side, x in sides.items()
        if "refused" not in x
    ]
    table(heads, rows)


def fresh(command, asked="", allowed=(0,), **how):
    """Wall and CPU seconds of a process and its children, from its start to its end."""
    began, before = time.perf_counter(), os.times()
    with open(BUILD / "posterior.log", "w") as log:
        command = [*CORES, *map(str, command)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"} | how.pop("env", {})
        environment.pop("VIRTUAL_ENV", None)
        how |= {"input": asked, "stdout": log, "stderr": log, "text": True}
        code = subprocess.run(command, env=environment, **how).returncode
    if code not in allowed:
        raise SystemExit(f"{command} ended with code {code}: see {BUILD / 'posterior.log'}")
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])  # of children that have ended
    return {"wall": time.perf_counter() - began, "cpu": cpu}


def fits(options, pythons, installed):
    """Fits and calibrations of eight schools, each in a process of its own; medians of rounds."""
    eight = {"name": POSTERIORS["eight schools"], "draws": options.draws}
    draw = json.dumps(["build", eight]) + "\n" + json.dumps(["run", {"seed": 1}]) + "\n"
    acorn = pythons["ours"].parent / "acorn"
    plain = ["--model.name", "eight_schools", "--run-dir"]
    times = {}

    def note(what, seconds):
        times.setdefault(what, []).append(seconds)
        print(f"{what}: {seconds['cpu']:.1f} CPU s, {seconds['wall']:.1f} s", flush=True)

    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            caches = {w: {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/{w}"} for w in ("o", "n")}
            for turn in ("first", "second"):
                command = [acorn, "fit", *plain, f"runs/{turn}"]
                note(f"`acorn fit`, {turn}", fresh(command, cwd=scratch))
                seconds = fresh(command_of("ours", pythons), draw, env=caches["o"])
                note(f"its sampler and ESS alone, {turn}", seconds)
                if "numpyro" in installed:
                    peer, fit = command_of("peers", pythons), json.dumps(["fit", eight]) + "\n"
                    note(f"`numpyro.MCMC` and ESS, {turn}", fresh(peer, fit))
                    seconds = fresh(peer, fit, env=caches["n"])
                    note(f"the same with JAX's cache, {turn}", seconds)
            for turn in ("first", "second"):
                command = [acorn, "calibrate", *plain, f"runs/c-{turn}", "--nuts.warmup", "500"]
                command += ["--simulations", str(SIMULATIONS)]
                note(
                    f"`acorn calibrate`, {SIMULATIONS} simulations, {turn}",
                    fresh(command, cwd=scratch),
                )
    if "simuk" in installed:
        worker = Worker(*command_of("simuk", pythons), log=BUILD / "posterior.log")
        found = worker.ask("simulate", simulations=OF_SIMUK, draws=500)
        worker.close()
        scaled = {what: seconds * SIMULATIONS for what, seconds in found.items()}
        note(f"simuk, {SIMULATIONS} simulations, scaled from {OF_SIMUK}", scaled)
    medians = {what: {k: median(x[k] for x in t) for k in t[0]} for what, t in times.items()}
    rows = [[what, f"{t['cpu']:.1f}", f"{t['wall']:.1f}"] for what, t in medians.items()]
    table(["eight schools, in a fresh process", "CPU s", "s"], rows)
    return times


def devices(options, pythons, installed):
    """Warm runs of the same chains on more and more fake devices."""
    name, workers = POSTERIORS["radon"], {}
    try:
        for count in DEVICES:
            environment = {"JAX_NUM_CPU_DEVICES": str(count)}
            workers[count] = Worker(*command_of("ours", pythons), **environment)
            workers[count].ask("build", name=name, draws=options.draws, chains=CHAINS)
        rounds = range(1, options.rounds + 1)
        found = {count: [] for count in DEVICES}
        for seed in rounds:
            for count, worker in workers.items():
                found[count].append(worker.ask("run", seed=seed))
    finally:
        for worker in workers.values():
            worker.close()
    rows = [
        [count, *(f"{median(r[what] for r in runs):.2f}" for what in ("wall", "cpu"))]
        for count, runs in found.items()
    ]
    table([f"devices, radon, {CHAINS} chains", "run, s", "run, CPU s"], rows)
    return found


PARTS = {"sampling": sampling, "fits": fits, "devices": devices}


def main(options):
    peers, installed = peers_python()
    pythons = {"ours": grow_project("bayes") / ".venv" / "bin" / "python", "peers": peers}
    machine = describe_machine()
    print(machine, flush=True)
    results = {"machine": machine, "draws": options.draws}
    for part in options.parts or PARTS:
        results[part] = PARTS[part](options, pythons, installed)
        results["load_after"] = os.getloadavg()[0]
        (BUILD / "posterior.json").write_text(json.dumps(results, indent=1))
    print(f"load after: {results['load_after']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--posteriors", nargs="*", metavar="NAME", help=", ".join(POSTERIORS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1000, help="of a chain; as many of warm-up")
    main(parser.parse_args())
