"""What was left out or changed: counted, named, and refused where too much was left out.

Looks at no image: sources.py and decode.py say what is wrong with one.
"""

from typing import Any

from ..errors import UserError
from .settings import ImageConfig

NAMES_KEPT = 5  # of the images of one kind

type Counts = dict[str, list[Any]]
"""Kind -> [how many images are of it, the names of the first], as the manifest keeps it."""


def count(counts: Counts, kind: str, name: str) -> None:
    """Add one image to its kind."""
    number, names = counts.get(kind, [0, []])
    counts[kind] = [number + 1, [*names, name][:NAMES_KEPT]]


def total(counts: Counts) -> int:
    """How many there are of all kinds."""
    return sum(number for number, _ in counts.values())


def tell(counts: Counts) -> str:
    """Each kind, its number and the names of the first, in one line."""
    kinds = []
    for kind, (number, names) in counts.items():
        kinds.append(f"{kind}: {number:,} ({tell_names(names, number)})")
    return "; ".join(kinds)


def tell_names(names: list[str], number: int) -> str:
    """Some of a number of names, in one line."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:NAMES_KEPT]]
    return ", ".join([*shown, "..."][:number])


def tell_left_out(unusable: Counts, used: int) -> str:
    """How many images were left out, why, and the names of the first, in one line."""
    lost = total(unusable)
    return f"left out {lost:,} of {lost + used:,} images; {tell(unusable)}".removesuffix("; ")


def check_usable(config: ImageConfig, images: dict[str, int], unusable: Counts) -> None:
    """Raise where too many images were left out, or a split has too few to be judged."""
    lost, used = total(unusable), sum(images.values())
    if lost > config.max_unusable_fraction * (lost + used):
        raise UserError(
            got=tell_left_out(unusable, used),
            expected=f"at most {config.max_unusable_fraction:.3g} of them",
            do="put whole images and labels there, or name the fields with --data.image-field and "
            '--data.label-field ("" = no labels); --data.max-unusable-fraction 1 goes on without',
        )
    if min(images.values()) < 2:
        raise UserError(
            got=f"{images['train']} images to train on, {images['heldout']} held out; "
            + tell_left_out(unusable, used),
            expected="two or more to train on, and as many that are held out, chosen by hash",
            do="give more images, or change --data.heldout-fraction",
        )
