"""What is written is read back, whatever the memory layout of the arrays."""

import json
from pathlib import Path

import numpy as np

from ..weights_file import write_weights


def test_arrays_come_back_as_float32(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 4))
    tensors = {"plain": x, "turned": x.T, "strided": x[:, ::2], "narrow": x[0].astype("f2").T}
    write_weights(tmp_path / "model.safetensors", tensors)
    data = (tmp_path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert set(header) == set(tensors)
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        found = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
        np.testing.assert_array_equal(found, tensors[name].astype("<f4"))
