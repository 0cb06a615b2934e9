"""Draws images with the files of this folder. Needs JAX, and flatbuffers for `jax.export`.

python sample.py [COUNT] [SEED]    # writes samples.npy, uint8 or latents [COUNT, H, W, C]
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export

FOLDER = Path(__file__).parent


def read_weights(path):
    """Name -> array of a safetensors file: a length, a JSON header, then the numbers."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, about in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = about["data_offsets"]
            flat = np.frombuffer(content[start + first : start + last], "<f4")
            tensors[name] = flat.reshape(about["shape"])
    return tensors


def main(count=16, seed=0):
    about = json.loads((FOLDER / "config.json").read_text())
    # Older versions cannot read what a younger one wrote; younger ones can, for half a year.
    if jax.__version_info__ < tuple(map(int, about["jax"].split(".")[:3])):
        sys.exit(
            f"made with JAX {about['jax']}, and this is {jax.__version__}: install a younger one"
        )
    sampler = export.deserialize(bytearray((FOLDER / "sampler.stablehlo").read_bytes()))
    weights = read_weights(FOLDER / "model.safetensors")
    labels = np.arange(count, dtype=np.int32) % max(about["classes"], 1)
    images = np.asarray(sampler.call(weights, labels, np.uint32(seed)))
    np.save("samples.npy", images)
    print(f"samples.npy: {images.dtype} {images.shape}, {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    if len(sys.argv) > 3 or not all(map(str.isdecimal, sys.argv[1:])) or sys.argv[1:2] == ["0"]:
        sys.exit(__doc__)
    main(*map(int, sys.argv[1:]))
