"""The documents that can be used; the others are counted, named, and refused if they are many.

Looks at no text: corpus.py says what is wrong with a document.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..errors import UserError
from .corpus import Document, SplitName, read_documents
from .settings import TextConfig

NAMES_KEPT = 5  # of the documents with one problem
SURE = 1000  # if so many records come first and none has a text, the field is not that of the texts

type LeftOut = dict[str, list[Any]]
"""Problem -> [how many documents have it, the names of the first], as the manifest keeps it."""


def read_usable(config: TextConfig, left_out: LeftOut) -> Iterator[Document]:
    """The documents that can be used; the others are added to `left_out`."""
    used, refuses = False, config.max_unusable_fraction < 1
    for document in read_documents(config):
        if not document.problem:
            used = True
            yield document
            continue
        count, names = left_out.get(document.problem, [0, []])
        left_out[document.problem] = [count + 1, [*names, document.name][:NAMES_KEPT]]
        if document.problem == "no text" and count + 1 == SURE and not used and refuses:
            return


def check_usable(config: TextConfig, used: Counter[SplitName], left_out: LeftOut) -> None:
    """Raise where too many documents were left out, or a split has none."""
    total = used.total()
    # An empty document is no loss.
    lost = sum(count for problem, (count, _) in left_out.items() if problem != "empty")
    if lost > config.max_unusable_fraction * (lost + total):
        raise UserError(
            got=tell(left_out, total),
            expected=f"at most {config.max_unusable_fraction:.3g} of them, empty ones aside",
            do="write them again, as UTF-8, or name the field of the texts with --data.text-field; "
            "--data.max-unusable-fraction 1 goes on without them",
        )
    if not used["train"] or not used["heldout"]:
        raise UserError(
            got=f"{used['train']} documents to train on, {used['heldout']} held out; "
            + tell(left_out, total),
            expected="documents to train on and, chosen by hash, held-out ones",
            do="give more documents, or change --data.heldout-fraction",
        )


def tell(left_out: LeftOut, used: int) -> str:
    """How many documents were left out, why, and the names of the first, in one line."""
    total = sum(count for count, _ in left_out.values())
    problems = []
    for problem, (count, names) in left_out.items():
        shown = [name if name.isprintable() else ascii(name) for name in names]
        if count > len(names):
            shown.append("...")
        problems.append(f"{problem}: {count:,} ({', '.join(shown)})")
    return "; ".join([f"left out {total:,} of {total + used:,} documents", *problems])
