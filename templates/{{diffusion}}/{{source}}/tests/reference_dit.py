"""A DiT in NumPy and float64, one token and one head at a time, from the papers it is made of.

DiT: adaLN-Zero and waves of places, arXiv:2212.09748 section 3.2. RMSNorm: arXiv:1910.07467
equation 4. SwiGLU: arXiv:2002.05202 equation 6. RoPE: arXiv:2104.09864 equation 15, axial as in
arXiv:2403.13298 section 3.1. Only the names of the parameters are those of `dit.py`.
"""

from typing import Any

import numpy as np


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def normed(x: np.ndarray, gain: Any = 1.0) -> np.ndarray:
    return gain * x / np.sqrt(np.square(x).mean() + 1e-6)


def turned(x: np.ndarray, place: tuple[int, int] | None, theta: float) -> np.ndarray:
    """A query or key of one token of one head as complex numbers, of which each turns."""
    pairs = len(x) // 2
    z = x[:pairs] + 1j * x[pairs:]
    for i in range(pairs):
        axis, number = divmod(i, pairs // 2)  # rows turn the first half, columns the second
        if place is not None:
            z[i] *= np.exp(1j * place[axis] * theta ** (-number / (pairs // 2)))
    return z


def attention(x: np.ndarray, p: Any, places: list[Any], heads: int, theta: float) -> np.ndarray:
    size = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = (x @ p[name][:, part] for name in ("query", "key", "value"))
        q, k = (
            [
                turned(normed(row, p[f"{name}_norm"]), place, theta)
                for row, place in zip(rows, places, strict=True)
            ]
            for name, rows in (("query", q), ("key", k))
        )
        for token in range(len(x)):
            powers = np.exp([(q[token] @ other.conj()).real / np.sqrt(size) for other in k])
            mixed[token, part] = powers / powers.sum() @ v
    return mixed @ p["out"]


def place_waves(row: int, column: int, width: int, theta: float) -> np.ndarray:
    """Cosines, then sines, of the row and of the column."""
    rates = [theta ** (-i / (width // 4)) for i in range(width // 4)]
    angles = [row * r for r in rates] + [column * r for r in rates]
    return np.array([*np.cos(angles), *np.sin(angles)])


def condition(p: Any, noise: float, label: int, augment: np.ndarray) -> np.ndarray:
    rates = [100 / 1000 ** (i / 128) for i in range(128)]
    waves = np.array([np.cos(noise * r) for r in rates] + [np.sin(noise * r) for r in rates])
    time = silu(waves @ p["noise_in"]) @ p["noise_out"]
    return silu(time + p["label"][label] + augment @ p["augment"])


def block(x: np.ndarray, c: np.ndarray, p: Any, places: list[Any], heads: int, theta: float) -> Any:
    alpha = np.split(c @ p["modulation"]["matrix"] + p["modulation"]["bias"], 6)
    h = np.array([normed(token) * (1 + alpha[1]) + alpha[0] for token in x])
    x = x + alpha[2] * attention(h, p["attention"], places, heads, theta)
    h = np.array([normed(token) * (1 + alpha[4]) + alpha[3] for token in x])
    return x + alpha[5] * ((silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"])


def dit(
    p: Any,
    image: np.ndarray,
    noise: float,
    label: int,
    augment: np.ndarray,
    patch: int,
    heads: int,
    theta: float,
) -> np.ndarray:
    """The output for one image."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    registers, grid = p["registers"], [(r, c) for r in range(rows) for c in range(columns)]
    cut = [slice(i * patch, (i + 1) * patch) for i in range(max(rows, columns))]
    tokens = [
        image[cut[r], cut[c]].ravel() @ p["embed"] + place_waves(r, c, registers.shape[1], theta)
        for r, c in grid
    ]
    x, places = np.array([*registers, *tokens]), [None] * len(registers) + grid
    c = condition(p["condition"], noise, label, augment)
    for layer in range(len(p["blocks"]["gate"])):
        one = {
            name: {key: w[layer] for key, w in value.items()}
            if isinstance(value, dict)
            else value[layer]
            for name, value in p["blocks"].items()
        }
        x = block(x, c, one, places, heads, theta)
    shift, scale = np.split(c @ p["modulation"]["matrix"] + p["modulation"]["bias"], 2)
    out = np.zeros_like(image)
    for (row, column), token in zip(grid, x[len(registers) :], strict=True):
        pixels = (normed(token) * (1 + scale) + shift) @ p["out"]
        out[cut[row], cut[column]] = pixels.reshape(patch, patch, -1)
    return out
