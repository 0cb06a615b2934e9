"""Where a kind's outputs go: arrays of every step that counted, in step with the checkpoints.

One `.npz` file holds the steps from the previous save to its own name. It is written before that
checkpoint commits, and a resume deletes the files beyond the checkpoint it starts from; so after
any kill there is no gap and no duplicate.
"""

from pathlib import Path

import jax
import numpy as np


class Sink:
    """Collects outputs between two saves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps: list[dict[str, np.ndarray]] = []

    def add(self, outputs: dict[str, jax.Array]) -> None:
        """Keep one step's outputs, in the host's memory; process 0 does."""
        if outputs and jax.process_index() == 0:
            self._steps.append(jax.device_get(outputs))

    def write(self, step: int) -> None:
        """Put what was collected into the file of `step`, atomically."""
        if self._steps:
            self._folder.mkdir(parents=True, exist_ok=True)
            names = self._steps[0]
            stacked = {name: np.stack([s[name] for s in self._steps]) for name in names}
            part = self._folder / f"{step:08d}.npz.part"
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, **stacked)
            part.rename(self._folder / f"{step:08d}.npz")
        self._steps = []

    def cut(self, step: int) -> None:
        """Forget everything beyond `step`."""
        self._steps = []
        for path in self._folder.glob("*.npz*") if jax.process_index() == 0 else ():
            if path.suffix == ".part" or int(path.stem) > step:
                path.unlink()


def read_outputs(folder: Path) -> dict[str, np.ndarray]:
    """Name -> array with one leading axis over all steps that counted so far."""
    parts = [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]
    return (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    )
