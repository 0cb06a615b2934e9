"""A folder that makes a machine without a package index run the emitted project.

    sh hooks/uv.sh run python benchmarks/wheels.py [--check]      here: make build/gpu, try it
    python3 benchmarks/wheels.py --install FOLDER                 there: install the wheels

The machine has Python 3.12 with JAX, NumPy, SciPy and Matplotlib (THERE; PyTorch is for the other
side of gpu.py), so these and what they need stay behind. So does pyarrow: only parquet files need
it, and the emitted code imports it where it opens one. Resolved to the tested set.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from grown import BUILD, ROOT, UV

FOLDER = ROOT / "build" / "gpu"
MOST_BYTES = 60e6
THERE = ("jax==0.11.2", "numpy==2.5.2", "scipy", "matplotlib")
OPTIONAL = ("pyarrow",)
PLATFORM = "x86_64-manylinux_2_28"
# pip takes a wheel only where its platform is named exactly.
TAGS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)]
TAGS += ["manylinux2014_x86_64", "manylinux1_x86_64"]
IMPORT_ALL = """
import importlib, pkgutil, acorn
modules = [module.name for module in pkgutil.walk_packages(acorn.__path__, "acorn.")]
left_out = (".tests", "conftest", "__main__")
modules = [name for name in modules if not any(part in name for part in left_out)]
for name in modules:
    importlib.import_module(name)
print(f"{len(modules)} modules of the emitted package import")
"""


def make():
    """`build/gpu`: the wheels and a grown project. Fails where the wheels are too large."""
    sys.path.insert(0, str(ROOT / "hooks"))
    from demo import grow

    for name in ("wheels", "acorn"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    grow("llm", FOLDER / "acorn")
    project = tomllib.loads((FOLDER / "acorn" / "pyproject.toml").read_text("utf-8"))
    asked = [x for x in project["project"]["dependencies"] if not x.startswith(OPTIONAL)]
    newest = project["tool"]["uv"]["exclude-newer"]
    there = resolve(THERE, newest)
    carried = [pin for pin in resolve(asked, newest, constraints=there) if pin not in there]
    download(carried)
    wheels = sorted((FOLDER / "wheels").iterdir(), key=lambda file: -file.stat().st_size)
    in_all = sum(file.stat().st_size for file in wheels)
    print("\n".join(f"{file.stat().st_size / 1e6:8.2f} MB  {file.name}" for file in wheels))
    print(f"{in_all / 1e6:8.2f} MB  in {len(wheels)} wheels of {len(carried)} packages")
    if in_all > MOST_BYTES:
        largest = ", ".join(
            f"{file.stat().st_size / 1e6:.0f} MB {file.name}" for file in wheels[:3]
        )
        raise SystemExit(f"more than {MOST_BYTES / 1e6:.0f} MB; the largest: {largest}")


def resolve(asked, newest, constraints=()):
    """Pins of packages and of all that they need, for that machine."""
    with tempfile.TemporaryDirectory() as scratch:
        limits = Path(scratch) / "constraints.txt"
        limits.write_text("\n".join(constraints))
        command = [UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "-"]
        command += ["--python-version", "3.12", "--python-platform", PLATFORM]
        command += ["--only-binary", ":all:", "--exclude-newer", newest, "-c", limits]
        found = subprocess.run(
            command, input="\n".join(asked), text=True, stdout=subprocess.PIPE, check=True
        )
    return [line for line in found.stdout.splitlines() if "==" in line]


def download(pins):
    """Fetch one wheel a pin."""
    command = [UV, "run", "--quiet", "--no-project", "--python", sys.executable, "--with", "pip"]
    command += ["python", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp"]
    command += [word for tag in TAGS for word in ("--platform", tag)]
    subprocess.run([*command, "--dest", FOLDER / "wheels", *pins], check=True)


def install(into):
    """Install the wheels into a folder that PYTHONPATH is to name; asks no index."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--upgrade", "--target", into]
    subprocess.run([*command, *sorted((FOLDER / "wheels").glob("*.whl"))], check=True)


def check():
    """Play the other machine: its packages in a new environment, our wheels, gpu.py rehearsed."""
    from torch_gpt import torch_python

    there, site = BUILD / "there", BUILD / "site"
    python = there / "bin" / "python"
    shutil.rmtree(site, ignore_errors=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    clean["JAX_PLATFORMS"] = "cpu"
    subprocess.run(
        [UV, "venv", "--quiet", "--clear", "--python", sys.executable, there], check=True
    )
    # No --exclude-newer: THERE names what that machine was seen to have.
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, "pip", *THERE], check=True)
    subprocess.run([python, __file__, "--install", site], env=clean, check=True)
    ours = clean | {"PYTHONPATH": f"{site}:{FOLDER / 'acorn' / 'src'}"}
    subprocess.run([python, "-c", IMPORT_ALL], env=ours, check=True)
    rehearse = [python, ROOT / "benchmarks" / "gpu.py", "--rehearse", "--fresh"]
    rehearse += ["--budget-s", "1800", "--turn-s", "1"]  # compilers on a busy CPU are slow
    rehearse += ["--torch", torch_python(), "--out", BUILD / "rehearsed.json"]
    subprocess.run(rehearse, env=clean | {"PYTHONPATH": str(site)}, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", metavar="FOLDER", help="install the wheels there, no more")
    parser.add_argument("--check", action="store_true", help="then rehearse gpu.py on them")
    options = parser.parse_args()
    if options.install:
        install(options.install)
    else:
        make()
        if options.check:
            check()
