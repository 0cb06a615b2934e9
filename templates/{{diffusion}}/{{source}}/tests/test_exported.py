"""What is exported draws the same images as the run, with JAX alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

from .. import cli
from ..config import DrawConfig
from ..errors import Exit
from ..trained import open_run

# JAX, what it brings along, and what `jax.export` reads with.
ALONE = ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers")
ALONE += ("numpy.libs", "scipy.libs")
SCRIPT = """
import runpy, sys

sys.path.append("{packages}")
sys.argv = ["sample.py", "12", "3"]
runpy.run_path("{script}", run_name="__main__")
"""


def test_what_is_exported_draws_the_same_with_jax_alone(run_dir: Path, tmp_path: Path) -> None:
    line = f"export --run-dir {run_dir} --to {tmp_path / 'out'} --guidance 2"
    assert cli.run(line.split())[0] == Exit.DONE
    opened = open_run(run_dir, DrawConfig(guidance=2.0))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(x.size for x in weights.values()) == sum(
        x.size for x in jax.tree.leaves(opened.params)
    )
    packages, installed = tmp_path / "packages", Path(jax.__file__).parents[1]
    packages.mkdir()
    for name in ALONE:
        (packages / name).symlink_to(installed / name)
    script = SCRIPT.format(packages=packages, script=tmp_path / "out" / "sample.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    alone = [sys.executable, "-S", "-c", script]  # -S: no other installed package
    subprocess.run(alone, cwd=tmp_path, check=True, env=environment)
    images = np.load(tmp_path / "samples.npy")
    expected = opened.sample(12, seed=3)
    assert images.dtype == np.uint8
    # Another program of the same numbers: a value may fall on the other side of a level.
    assert (np.abs(images.astype(int) - expected.astype(int)) <= 1).all()
    assert (images == expected).mean() > 0.99
    about = json.loads((tmp_path / "out" / "config.json").read_text()) | {"jax": "99.0.1"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(about))
    refused = subprocess.run(
        alone, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert refused.returncode == 1
    assert "made with JAX 99.0.1" in refused.stderr
    assert "Traceback" not in refused.stderr
