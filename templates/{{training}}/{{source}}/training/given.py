"""What a user gives as data: the names of its files, and a count of what cannot be used.

Opens nothing that is data, and knows no text and no image.
"""

import difflib
import json
import os
from pathlib import Path
from typing import Any

NAMES_KEPT = 5  # of one kind

type Counts = dict[str, list[Any]]
"""Kind -> [how many are of it, the names of the first], as a manifest keeps it."""


def count(counts: Counts, kind: str, name: str) -> int:
    """Add one to its kind -> how many are of it now."""
    number, names = counts.get(kind, [0, []])
    counts[kind] = [number + 1, [*names, name][:NAMES_KEPT]]
    return counts[kind][0]


def total(counts: Counts) -> int:
    """How many there are of all kinds."""
    return sum(number for number, _ in counts.values())


def tell(counts: Counts) -> str:
    """Each kind, its number and the names of the first, in one line."""
    kinds = counts.items()
    return "; ".join(f"{kind}: {n:,} ({tell_names(names, n)})" for kind, (n, names) in kinds)


def tell_names(names: list[str], number: int) -> str:
    """Some of a number of names, in one line."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:NAMES_KEPT]]
    return ", ".join([*shown, "..."][:number])


def tell_left_out(unusable: Counts, used: int, of: str) -> str:
    """How many were left out, why, and the names of the first, in one line. of: "images"."""
    lost = total(unusable)
    return f"left out {lost:,} of {lost + used:,} {of}; {tell(unusable)}".removesuffix("; ")


def spelled(file: str | Path) -> str:
    """A file's name as text: bytes of it that are not UTF-8 are spelled out."""
    return os.fsencode(file).decode(errors="backslashreplace")


def near(path: Path) -> str:
    """What stands where the first missing part of a path was looked for."""
    folder = path if os.path.isdir(path) else path.parent
    while not os.path.isdir(folder):
        path, folder = folder, folder.parent
    names = sorted(spelled(name) for name in os.listdir(folder) if not name.startswith("."))
    names = difflib.get_close_matches(path.name, names, cutoff=0.4) or names[:3]
    return f"{folder} has {tell_names(names, len(names)) or 'nothing'}"


def is_run(folder: Path) -> bool:
    """Whether a run wrote in a folder: its files are no data."""
    return has_key(folder / "config.json", "identity")


def has_key(path: Path, key: str) -> bool:
    """Whether a file is a JSON object with this key."""
    try:
        return key in json.loads(path.read_bytes())
    except (OSError, RecursionError, TypeError, ValueError):
        return False
