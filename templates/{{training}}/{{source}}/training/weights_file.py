"""Parameters as a `.safetensors` file, which other tools read. Knows no names and no model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_weights(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 tensors by name; `format` "pt" is what Transformers asks for."""
    # safetensors 0.8.0 writes the memory of a strided array as it lies, without a word: transposed
    # matrices would come back scrambled.
    arrays = {name: np.ascontiguousarray(x, "<f4") for name, x in tensors.items()}
    save_file(arrays, path, metadata={"format": "pt"})
