"""Rows for training: an image, or its latents, and its label. Knows no order, batch or device."""

import numpy as np

from .shards import Split


class Rows:
    """The images of a split, one a row."""

    def __init__(self, split: Split) -> None:
        self.split, self.images = split, split.latents or split.pixels

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """`image`: uint8 [H, W, C] pixels or float16 [h, w, c] latents; `label`: int32."""
        return {"image": self.images[row], "label": self.split.labels[row]}
