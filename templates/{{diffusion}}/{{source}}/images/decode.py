"""One image, in a file, in memory or as an array -> uint8 pixels. Knows no data set and no label.

What Pillow does is kept: 16 bits a colour become the high 8, grey is ITU-R 601 luma, colour
profiles are not applied.
"""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow reads more: EPS by starting Ghostscript, others by what a machine happens to have.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# 8192 x 8192. Larger ones are left out: each thread holds one, three times over.
MOST_PIXELS = 1 << 26
GREY = {"1", "L", "LA", "La"}
COLOUR = {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
EXIF_ORIENTATION = 0x0112

type Content = Path | bytes | UInt8[np.ndarray, "..."] | None
"""A file, what is in one, pixels [h, w] or [h, w, c] of 1, 3 or 4 channels, or nothing."""


def decode(
    content: Content, *, size: int, colour: bool, levels: int = 256
) -> tuple[UInt8[np.ndarray, "H W C"] | None, list[str]]:
    """Pixels, and what had to be changed for them; or None, and why there are none.

    Three channels with `colour`, else one; alpha is laid on white, a camera's turn is undone, an
    animation gives its first frame. With a `size` above 0 the largest square in the middle is
    scaled to it by a Lanczos filter as wide as the pixels it merges: the centre crop of the shorter
    side, as in ADM (arXiv:2105.05233) and DiT.
    """
    if content is None:
        return None, ["no image"]
    try:
        if isinstance(content, np.ndarray):
            opened = Image.fromarray(content[..., 0] if content.shape[2:] == (1,) else content)
        else:
            file = BytesIO(content) if isinstance(content, bytes) else content
            opened = Image.open(file, formats=FORMATS)
        with opened as image:
            if image.width * image.height > MOST_PIXELS:
                return None, ["too large"]
            pixels, kinds = _pixels(image, size, colour)
            # Scaling overshoots at edges, and Pillow knows no other bound than 255.
            return None if pixels is None else np.minimum(pixels, np.uint8(levels - 1)), kinds
    except Image.DecompressionBombError:
        return None, ["too large"]
    except UnidentifiedImageError:
        return None, ["not an image"]
    except (FileNotFoundError, PermissionError):
        return None, ["cannot be read"]
    except Exception:  # Pillow's readers raise all kinds for damaged files
        return None, ["damaged"]


def _pixels(
    image: Image.Image, size: int, colour: bool
) -> tuple[UInt8[np.ndarray, "H W C"] | None, list[str]]:
    is_deep = image.mode[0] == "I" or bool(re.search(";16[BLN]", str(getattr(image, "tile", ""))))
    done = {
        "16 bits to 8": is_deep,
        "first frame of several": getattr(image, "is_animated", False),
    }
    image.load()
    done["turned upright"] = image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)
    image = ImageOps.exif_transpose(image)
    if image.mode[0] == "I":  # where Pillow's own conversion would clip
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() >= 1 << 16:
            return None, ["32 bits"]
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    if image.mode not in GREY | COLOUR:
        return None, [f"colours of mode {image.mode}"]
    is_grey = image.mode in GREY
    done |= {
        "palette": image.mode in ("P", "PA"),
        "CMYK": image.mode == "CMYK",
        "alpha laid on white": image.has_transparency_data,
        "grey to colour": is_grey and colour,
        "colour to grey": not is_grey and not colour,
        "enlarged": min(image.size) < size,
    }
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB" if colour else "L")
    if size:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    pixels = np.array(image)
    return pixels.reshape(*pixels.shape[:2], -1), [kind for kind, was in done.items() if was]
