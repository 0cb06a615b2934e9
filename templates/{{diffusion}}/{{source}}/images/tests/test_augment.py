"""Augmentations are the transforms that their conditions tell, as often as they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ..augment import CONDITIONS, SCALE_STD, SHIFT_STD, augment, flip, transform

KEY = jax.random.key(0)
TRANSFORM = jax.jit(transform)
AUGMENT = jax.jit(augment, static_argnums=2)
NOISE = jax.random.normal(KEY, (64, 5, 6, 3))
WHOLE = (-np.pi, np.pi)
MIRROR, SCALE, RATIO, COS, SIN, RIGHT, DOWN = np.eye(CONDITIONS)
TURNED_ABOUT = -2 * COS  # half a circle: cos - 1 = -2, sin = 0


def bump(height: int, width: int) -> jnp.ndarray:
    """A smooth picture without symmetry, zero at its edges: a blob beside the middle."""
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    blob = jnp.exp(-(((x - 0.15) / 0.35) ** 2) - ((y + 0.1) / 0.2) ** 2)
    return jnp.stack([blob, blob * x], -1)


def test_condition_0_is_the_image_bit_for_bit() -> None:
    for shape in ((8, 8, 1), (1, 1, 1), (32, 31, 4)):
        image = jax.random.normal(KEY, shape)
        got = TRANSFORM(image, jnp.zeros(CONDITIONS))
        np.testing.assert_array_equal(got, image)
    images, conditions = AUGMENT(KEY, NOISE, 0.0)
    np.testing.assert_array_equal(images, NOISE)
    assert not conditions.any()


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (MIRROR, lambda image: image[:, ::-1]),
        (TURNED_ABOUT, lambda image: image[::-1, ::-1]),
        (MIRROR + TURNED_ABOUT, lambda image: image[::-1]),
        # By a whole number of pixels; beyond the edge comes the mirror image, without the edge.
        (RIGHT / SHIFT_STD / 6, lambda image: jnp.concatenate([image[:, 1:2], image[:, :-1]], 1)),
        (-RIGHT / SHIFT_STD / 6, lambda image: jnp.concatenate([image[:, 1:], image[:, -2:-1]], 1)),
        (DOWN / SHIFT_STD / 5, lambda image: jnp.concatenate([image[1:2], image[:-1]], 0)),
        # By half a pixel: the mean of two neighbours, seen from the second column on.
        (
            RIGHT / SHIFT_STD / 12,
            lambda image: jnp.concatenate(
                [(image[:, :1] + image[:, 1:2]) / 2, (image[:, 1:] + image[:, :-1]) / 2], 1
            ),
        ),
    ],
    ids=["mirror", "half-turn", "upside-down", "right", "left", "down", "half-right"],
)
def test_transforms_in_closed_form(condition: np.ndarray, expected: object) -> None:
    for image in NOISE[:3]:
        got = TRANSFORM(image, jnp.array(condition, jnp.float32))
        np.testing.assert_allclose(got, expected(image), atol=2e-5)


def test_a_quarter_turn_goes_from_right_to_down() -> None:
    image = NOISE[0, :5, :5]
    got = TRANSFORM(image, jnp.array(SIN - COS, jnp.float32))
    np.testing.assert_allclose(got, jnp.rot90(image, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("condition", "wide", "high"),
    [(SCALE, 2, 2), (-SCALE, 0.5, 0.5), (RATIO, 2, 0.5), (-RATIO, 0.5, 2)],
)
def test_scale_and_ratio_change_width_and_height(
    condition: np.ndarray, wide: float, high: float
) -> None:
    y, x = jnp.meshgrid(jnp.arange(65) - 32.0, jnp.arange(65) - 32.0, indexing="ij")
    blob = jnp.exp(-(x**2 + y**2) / 2 / 6**2)[..., None]
    got = TRANSFORM(blob, jnp.array(condition / SCALE_STD, jnp.float32))[..., 0]
    expected = jnp.exp(-((x / wide) ** 2 + (y / high) ** 2) / 2 / 6**2)
    # Along each axis the bilinear error is an eighth of the second derivative, 1 / 36 a pixel.
    middle = slice(17, 48)  # what lies beyond may come from beyond the edge
    np.testing.assert_allclose(got[middle, middle], expected[middle, middle], atol=2 / 36 / 8)


def inverse(image: jnp.ndarray, condition: jnp.ndarray) -> jnp.ndarray:
    """Undoes a transform, in the opposite order of its parts."""
    mirror, scale, ratio, cos_less_1, sin, right, down = condition
    image = transform(image, jnp.zeros(CONDITIONS).at[5:].set(jnp.array([-right, -down])))
    image = transform(image, jnp.zeros(CONDITIONS).at[3:5].set(jnp.array([cos_less_1, -sin])))
    return transform(image, jnp.array([mirror, -scale, -ratio, 0, 0, 0, 0]))


def test_conditions_tell_the_transform() -> None:
    picture = bump(64, 64)
    images, conditions = AUGMENT(KEY, jnp.broadcast_to(picture, (40, *picture.shape)), 0.9)
    middle = (slice(None), slice(20, 44), slice(20, 44))
    undone = jax.jit(jax.vmap(inverse))(images, conditions)[middle]
    error = jnp.abs(undone - picture[middle[1:]]).max((1, 2, 3))
    # Four bilinear resamplings of a picture whose finest width is 0.2 * 32 pixels. An image that
    # was scaled down loses more, and a shift may take the middle out.
    assert np.quantile(error, 0.75) < 0.05
    changed = jnp.abs(images[middle] - picture[middle[1:]]).max((1, 2, 3))
    assert np.quantile(changed, 0.25) > 0.1


def test_each_part_has_its_rate_and_its_spread() -> None:
    _, conditions = AUGMENT(KEY, jnp.zeros((20_000, 2, 2, 1)), 0.3)
    rates = (conditions != 0).mean(0)
    expected = np.array([0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3])
    error = 5 * np.sqrt(expected * (1 - expected) / 20_000)
    assert (np.abs(rates - expected) < error).all()
    on = conditions != 0
    for at in (1, 2, 5, 6):
        part = conditions[on[:, at], at]
        assert abs(part.std() - 1) < 5 / np.sqrt(2 * len(part))
        assert abs(part.mean()) < 5 / np.sqrt(len(part))
    np.testing.assert_allclose((conditions[:, 3] + 1) ** 2 + conditions[:, 4] ** 2, 1, atol=1e-5)
    quarters = np.histogram(np.arctan2(conditions[:, 4], conditions[:, 3] + 1)[on[:, 4]], 4, WHOLE)[
        0
    ]
    assert np.abs(quarters / quarters.sum() - 0.25).max() < 0.03
    # A shift has both directions or none; the parts are independent of one another.
    assert (on[:, 5] == on[:, 6]).all()
    together = np.corrcoef(np.array(on)[:, [0, 1, 2, 4, 5]].T) - np.eye(5)
    assert np.abs(together).max() < 5 / np.sqrt(20_000)
    assert np.abs(np.corrcoef(conditions[:, [1, 2, 5, 6]].T) - np.eye(4)).max() < 0.05
    assert len(np.unique(conditions[on[:, 1], 1])) > 5000  # of its own for each image


def test_images_of_a_batch_do_not_mix() -> None:
    images, conditions = AUGMENT(KEY, NOISE, 0.5)
    for at in (0, 7, 63):
        np.testing.assert_array_equal(TRANSFORM(NOISE[at], conditions[at]), images[at])
    other = NOISE.at[1:].set(0)
    np.testing.assert_array_equal(AUGMENT(KEY, other, 0.5)[0][0], images[0])
    assert not np.array_equal(AUGMENT(jax.random.key(1), NOISE, 0.5)[1], conditions)


def test_half_of_the_images_are_mirrored() -> None:
    images = jnp.broadcast_to(bump(4, 5), (4000, 4, 5, 2))
    flipped, images = np.array(jax.jit(flip)(KEY, images)), np.array(images)
    is_mirror = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    is_same = (flipped == images).all((1, 2, 3))
    assert (is_mirror ^ is_same).all()
    assert abs(is_mirror.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    assert not np.array_equal(flip(jax.random.key(1), jnp.array(images)), flipped)


def test_augmentation_is_the_same_on_any_number_of_devices() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
    alone, spread = (AUGMENT(KEY, at, 0.5) for at in (NOISE, jax.device_put(NOISE, rows)))
    np.testing.assert_array_equal(alone[1], spread[1])
    np.testing.assert_allclose(alone[0], spread[0], atol=1e-6)
