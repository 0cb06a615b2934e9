"""A picture becomes the pixels that it shows, or a word for what is wrong with it."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from .. import decode as decode_module
from ..decode import decode

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 5), np.uint8)
COLOUR = RANDOM.integers(0, 256, (6, 5, 3), np.uint8)
LUMA = np.array(Image.fromarray(COLOUR).convert("L"))
DEEP = RANDOM.integers(0, 1 << 16, (6, 5), np.uint16)
LARGE = RANDOM.integers(0, 256, (9, 12), np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads but does not write in colour."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette() -> Image.Image:
    image = Image.new("P", (3, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 0, 1, 0, 1])
    return image


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[decode_module.EXIF_ORIENTATION] = orientation
    return saved(GREY, exif=exif)


def half_clear(values: list[int], kind: str) -> bytes:
    alpha = Image.fromarray(np.array([[255, 0, 128]], np.uint8))
    return saved(Image.merge(kind, [*(Image.new("L", (3, 1), v) for v in values), alpha]))


RED_BLUE = np.array([[[255, 0, 0], [0, 0, 255]] * 3], np.uint8).reshape(2, 3, 3)
BLEND = 100 * 128 / 255 + 127  # 100 over white at half: 177.2
TAG = {"transparency": 1}  # the second colour of a palette is clear
CLEAR_BLUE = np.where(RED_BLUE[..., 2:] > 0, 255, RED_BLUE)
FRAMES = {"save_all": True, "append_images": [Image.new("L", (5, 6), 9)]}
CUT = saved(LARGE)[:-40]

# Content, whether in colour, the pixels or None, and the words.
CASES: dict[str, tuple[object, bool, object, list[str]]] = {
    "grey": (saved(GREY), False, GREY, []),
    "grey-to-colour": (saved(GREY), True, np.stack([GREY] * 3, -1), ["grey to colour"]),
    "colour": (saved(COLOUR), True, COLOUR, []),
    "colour-to-grey": (saved(COLOUR), False, LUMA, ["colour to grey"]),
    "bits": (saved(Image.fromarray(GREY > 99)), False, (GREY > 99) * 255, []),
    "palette": (saved(palette()), True, RED_BLUE, ["palette"]),
    "palette-clear": (
        saved(palette(), **TAG),
        True,
        CLEAR_BLUE,
        ["palette", "alpha laid on white"],
    ),
    "alpha": (half_clear([100] * 3, "RGBA"), True, "blend", ["alpha laid on white"]),
    "grey-alpha": (half_clear([100], "LA"), False, "blend", ["alpha laid on white"]),
    "16-bits": (saved(DEEP), False, DEEP >> 8, ["16 bits to 8"]),
    "16-bits-tiff": (saved(DEEP, "TIFF"), False, DEEP >> 8, ["16 bits to 8"]),
    "16-bits-pgm": (
        b"P5 5 6 65535\n" + DEEP.astype(">u2").tobytes(),
        False,
        DEEP >> 8,
        ["16 bits to 8"],
    ),
    "16-bits-colour": (
        deep_png(np.stack([DEEP] * 3, -1), 2),
        True,
        np.stack([DEEP >> 8] * 3, -1),
        ["16 bits to 8"],
    ),
    "32-bits": (saved(DEEP.astype(np.int32) << 8, "TIFF"), False, None, ["32 bits"]),
    "float": (saved(DEEP.astype(np.float32), "TIFF"), False, None, ["colours of mode F"]),
    "lab": (
        saved(Image.new("LAB", (5, 6)), "TIFF"),
        True,
        None,
        ["colours of mode LAB"],
    ),
    "cmyk": (
        saved(Image.new("CMYK", (5, 6), (0, 255, 255, 0)), "TIFF"),
        True,
        np.full((6, 5, 3), [255, 0, 0]),
        ["CMYK"],
    ),
    "animated": (
        saved(GREY, "GIF", **FRAMES),
        False,
        GREY,
        ["first frame of several", "palette", "colour to grey"],
    ),
    "pages": (saved(GREY, "TIFF", **FRAMES), False, GREY, ["first frame of several"]),
    "turned": (turned(6), False, np.rot90(GREY, -1), ["turned upright"]),
    "mirrored": (turned(2), False, GREY[:, ::-1], ["turned upright"]),
    "upright": (turned(1), False, GREY, []),
    "array": (GREY, False, GREY, []),
    "array-1": (GREY[..., None], False, GREY, []),
    "array-3": (COLOUR, True, COLOUR, []),
    "array-4": (np.dstack([COLOUR, GREY * 0 + 255]), True, COLOUR, ["alpha laid on white"]),
    "nothing": (None, False, None, ["no image"]),
    "empty": (b"", False, None, ["not an image"]),
    "text": (b"hello" * 99, False, None, ["not an image"]),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", False, None, None),
    "cut": (CUT, False, None, ["damaged"]),
    "head": (saved(LARGE)[:20], False, None, ["damaged"]),
    "gone": (Path("no such file.png"), False, None, ["cannot be read"]),
    "folder": (Path("/"), False, None, ["damaged"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_picture_shows(case: str) -> None:
    content, colour, expected, words = CASES[case]
    pixels, kinds = decode(content, size=0, colour=colour)
    assert kinds == (["not an image"] if words is None else words)
    if expected is None:
        assert pixels is None
        return
    assert pixels.dtype == np.uint8
    if isinstance(expected, str):  # opaque, clear and half clear, on white
        assert pixels[0, :2, 0].tolist() == [100, 255]
        assert abs(int(pixels[0, 2, 0]) - BLEND) <= 1
        return
    expected = np.reshape(expected, (*np.shape(expected)[:2], -1))
    np.testing.assert_array_equal(pixels, expected)


def test_jpeg_shows_about_the_same(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    (tmp_path / "a.jpg").write_bytes(saved(smooth, "JPEG", quality=95))
    pixels, kinds = decode(tmp_path / "a.jpg", size=0, colour=False)
    assert kinds == []
    assert np.abs(pixels[..., 0].astype(int) - smooth).max() <= 3


@pytest.mark.parametrize(
    ("pixels", "most"), [((1 << 13, 1 << 13), 1 << 26), ((20_000, 20_000), None)]
)
def test_a_bomb_is_left_out_before_it_is_decoded(
    pixels: tuple[int, int], most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_module, "MOST_PIXELS", (most or 1 << 26) - 1)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    width, height = pixels
    bomb = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bomb) + chunk(b"IDAT", b"")
    assert decode(data, size=8, colour=False) == (None, ["too large"])


def middle(image: np.ndarray, side: int) -> np.ndarray:
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def test_scaling_keeps_the_middle_square_and_its_mean() -> None:
    y, x = np.meshgrid(np.arange(60), np.arange(100), indexing="ij")
    image = (60 + y + x).astype(np.uint8)
    pixels, kinds = decode(image, size=12, colour=False)
    assert kinds == []
    blocks = middle(image, 60).reshape(12, 5, 12, 5).mean((1, 3))
    # A linear ramp's filtered value is that at the centre, but for the edges, whose filter is cut.
    assert np.abs(pixels[2:-2, 2:-2, 0] - blocks[2:-2, 2:-2]).max() <= 0.5
    stripes = np.tile(
        np.array([0, 255], np.uint8), (40, 20)
    )  # of the finest kind: alias if sampled
    pixels, _ = decode(stripes, size=8, colour=False)
    assert np.abs(pixels.astype(float) - 127.5).max() < 20


def test_pixels_of_the_right_size_are_only_cropped() -> None:
    pixels, kinds = decode(LARGE[:, :9], size=9, colour=False)
    np.testing.assert_array_equal(pixels[..., 0], LARGE[:, :9])
    pixels, kinds = decode(LARGE[:, :11], size=9, colour=False)
    np.testing.assert_array_equal(pixels[..., 0], LARGE[:, 1:10])
    assert kinds == []


def test_small_pictures_are_enlarged_and_said_to_be() -> None:
    pixels, kinds = decode(np.full((2, 9), 7, np.uint8), size=8, colour=False)
    assert kinds == ["enlarged"]
    assert pixels.shape == (8, 8, 1)
    assert (pixels == 7).all()


def test_scaling_stays_within_the_levels() -> None:
    edge = np.zeros((8, 8), np.uint8)
    edge[:, 4:] = 16
    pixels, _ = decode(edge, size=20, colour=False, levels=17)
    assert pixels.max() == 16  # the filter overshoots


KINDS: list[tuple[str, Callable[[], bytes]]] = [
    (kind, lambda kind=kind: saved(COLOUR, kind))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", KINDS, ids=[name for name, _ in KINDS])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_damage_raises(kind: tuple[str, Callable[[], bytes]], data: st.DataObject) -> None:
    content = bytearray(kind[1]())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[at] ^= data.draw(st.integers(1, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    pixels, kinds = decode(bytes(content), size=4, colour=True)
    assert kinds if pixels is None else pixels.shape == (4, 4, 3)


@pytest.mark.parametrize("kind", KINDS, ids=[name for name, _ in KINDS])
def test_every_format_is_read(kind: tuple[str, Callable[[], bytes]]) -> None:
    pixels, kinds = decode(kind[1](), size=0, colour=True)
    assert pixels.shape == (6, 5, 3)
    assert set(kinds) <= {"palette"}
