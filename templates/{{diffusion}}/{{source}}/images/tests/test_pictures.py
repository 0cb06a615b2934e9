"""Pictures: every pixel is where it should be."""

import numpy as np
import pytest

from ..pictures import GAP, grid, labelled_table, neighbour_grid, strip, to_rgb


def flat(*values: float, size: int = 2, channels: int = 1) -> np.ndarray:
    """Images of one value each."""
    ones = np.ones((len(values), size, size, channels), np.float32)
    return ones * np.array(values, np.float32)[:, None, None, None]


def test_to_rgb() -> None:
    grey = to_rgb(flat(-1, 0, 1, -5, 5, np.nan, np.inf, -np.inf))
    assert grey.dtype == np.uint8
    assert grey.shape == (8, 2, 2, 3)
    expected = [0, 128, 255, 0, 255, 0, 255, 0]
    np.testing.assert_array_equal(grey, flat(*expected, channels=3))


@pytest.mark.parametrize(("channels", "shown"), [(1, [0] * 3), (2, [0] * 3), (3, [0, 1, 2])])
def test_channels(channels: int, shown: list[int]) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, channels)).astype(np.float32)
    expected = np.round((images[..., shown] + 1) * 127.5)
    np.testing.assert_array_equal(to_rgb(images), expected)


def test_of_latents_the_first_three_channels() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(to_rgb(images), to_rgb(images[..., :3]))


def test_grid() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (5, 4, 6, 3)).astype(np.float32)
    picture = grid(images, 3, 2)
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * (8 + GAP) + GAP, 3 * (12 + GAP) + GAP, 3)
    left = picture.copy()
    for index in range(5):
        y, x = GAP + index // 3 * (8 + GAP), GAP + index % 3 * (12 + GAP)
        for row, column in np.ndindex(8, 12):
            expected = to_rgb(images)[index, row // 2, column // 2]
            np.testing.assert_array_equal(picture[y + row, x + column], expected)
        left[y : y + 8, x : x + 12] = 255
    assert (left == 255).all()  # gaps, and the place of a sixth image


@pytest.mark.parametrize(("side", "factor"), [(8, 6), (28, 2), (32, 2), (48, 1), (64, 1)])
def test_small_images_are_made_legible(side: int, factor: int) -> None:
    assert grid(flat(0, size=side), 1).shape[0] == side * factor + 2 * GAP


def test_neighbours_stand_below_their_sample() -> None:
    train = flat(-1, -0.5, 0, 0.25, 1)
    picture = neighbour_grid(flat(0.1, 0.9), train, count=2, scale=1)
    expected = grid(flat(0.1, 0.9, 0, 1, 0.25, 0.25), 2, 1)
    np.testing.assert_array_equal(picture, expected)
    few = neighbour_grid(flat(0.1), train[:1], count=3, scale=1)
    np.testing.assert_array_equal(few, grid(flat(0.1, -1), 1, 1))


def test_strip() -> None:
    states = np.stack([flat(0.1, 0.2), flat(0.3, 0.4), flat(0.5, 0.6)])  # three times, two images
    picture = strip(states, scale=1)
    np.testing.assert_array_equal(picture, grid(flat(0.1, 0.3, 0.5, 0.2, 0.4, 0.6), 3, 1))


def test_labelled_table() -> None:
    values = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]
    cells = [[grid(flat(value, size=30), 1, 1) for value in line] for line in values]
    names = ["4", "8", "a long name of a column"]
    picture = labelled_table(cells, ["guidance 1", "3"], names)
    where = []
    for line in cells:
        for cell in line:
            # The one place of the grey square.
            rows, columns = np.nonzero((picture == cell[GAP, GAP]).all(axis=-1))
            y, x = rows.min() - GAP, columns.min() - GAP
            np.testing.assert_array_equal(picture[y : y + 34, x : x + 34], cell)
            where.append((y, x))
    ys, xs = np.array(where).reshape(2, 3, 2).transpose(2, 0, 1)
    assert (ys == ys[:, :1]).all()
    assert (xs == xs[:1]).all()
    assert (np.diff(ys[:, 0]) >= 34).all()
    assert (np.diff(xs[0]) >= 34).all()

    def has_ink(y: slice, x: slice) -> bool:
        return bool((picture[y, x] < 100).all(axis=-1).any())

    assert all(has_ink(slice(0, ys[0, 0]), slice(x, x + 34)) for x in xs[0])
    assert all(has_ink(slice(y, y + 34), slice(0, xs[0, 0])) for y in ys[:, 0])
    # Labels are whole: nothing is written at the border.
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == 255).all()


def test_a_table_of_one_cell() -> None:
    cell = grid(flat(0.0), 1, 1)
    picture = labelled_table([[cell]], ["µ"], [""])
    assert picture.dtype == np.uint8
    assert picture.shape[0] > cell.shape[0]
