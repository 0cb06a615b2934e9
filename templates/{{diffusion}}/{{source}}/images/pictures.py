"""Pictures made of images: grids, nearest neighbours, strips, tables. Writes no file."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from ..contract import Beat
from .distances import nearest

GAP = 2  # pixels between images
LEGIBLE = 48  # pixels that the longer side of an image has at least, unless a scale is given
PAPER, INK = (255, 255, 255), (36, 41, 47)
TEXT_SIZE = 16  # pixels

type Picture = UInt8[np.ndarray, "_ _ 3"]


def to_rgb(images: Float[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N H W 3"]:
    """[-1, 1] to 0 ... 255, clipped; NaN is black. Of more than three channels the first three, of
    fewer the first as grey."""
    channels = [0, 1, 2] if images.shape[-1] >= 3 else [0, 0, 0]
    values = np.nan_to_num(images[..., channels], nan=-1.0).clip(-1, 1)
    return ((values + 1) * 127.5).round().astype(np.uint8)


def grid(images: Float[np.ndarray, "N H W C"], columns: int, scale: int | None = None) -> Picture:
    """Images row by row, each pixel a square of `scale` pixels; None makes small ones legible."""
    count, height, width, _ = images.shape
    scale = scale or math.ceil(LEGIBLE / max(height, width))
    tiles = to_rgb(images).repeat(scale, axis=1).repeat(scale, axis=2)
    high, wide = height * scale + GAP, width * scale + GAP
    picture = np.full((math.ceil(count / columns) * high + GAP, columns * wide + GAP, 3), 255, "u1")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        y, x = GAP + row * high, GAP + column * wide
        picture[y : y + high - GAP, x : x + wide - GAP] = tile
    return picture


def neighbour_grid(
    samples: Float[np.ndarray, "N H W C"],
    train: Float[np.ndarray, "M H W C"],
    count: int = 3,
    scale: int | None = None,
    beat: Beat = lambda: None,
) -> Picture:
    """Each sample above the `count` training images that are nearest to it, the nearest first."""
    one, other = (images.reshape(len(images), -1) for images in (samples, train))
    _, rows = nearest(one, other, count, beat)
    return grid(np.concatenate([samples, *train[rows.T]]), len(samples), scale)


def strip(states: Float[np.ndarray, "T N H W C"], scale: int | None = None) -> Picture:
    """A row for each of N images, whose T states on the way from noise go from left to right."""
    by_image = states.swapaxes(0, 1)
    return grid(by_image.reshape(-1, *states.shape[2:]), len(states), scale)


def labelled_table(
    cells: Sequence[Sequence[Picture]], rows: Sequence[str], columns: Sequence[str]
) -> Picture:
    """Pictures under the labels of their columns and right of those of their rows.

    For example guidance 1, 1.5, 3 by sampler steps 4, 8, 25.
    """
    font, margin = ImageFont.load_default(TEXT_SIZE), TEXT_SIZE // 2
    length = lambda text: math.ceil(font.getlength(text)) + margin  # noqa: E731
    widths = [
        max(length(label), *(line[index].shape[1] for line in cells))
        for index, label in enumerate(columns)
    ]
    heights = [max(TEXT_SIZE + margin, *(cell.shape[0] for cell in line)) for line in cells]
    xs = np.cumsum([margin + max(map(length, rows)), *(width + margin for width in widths)])
    ys = np.cumsum([TEXT_SIZE + 2 * margin, *(height + margin for height in heights)])
    page = Image.new("RGB", (int(xs[-1]), int(ys[-1])), PAPER)
    draw = ImageDraw.Draw(page)
    for x, label in zip(xs, columns, strict=False):
        draw.text((x + GAP, margin), label, INK, font)
    for y, label, line in zip(ys, rows, cells, strict=False):
        draw.text((margin, y + GAP), label, INK, font)
        for x, cell in zip(xs, line, strict=False):
            page.paste(Image.fromarray(cell), (int(x), int(y)))
    return np.array(page)
