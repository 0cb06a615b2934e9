"""The documents that can be used; the others are counted, named, and refused if they are many.

Looks at no text: corpus.py says what is wrong with a document.
"""

from collections import Counter
from collections.abc import Iterator

from ..errors import UserError
from ..training.given import Counts, count, tell_left_out, total
from .corpus import Document, SplitName, read_documents
from .settings import TextConfig

SURE = 1000  # if so many records come first and none has a text, the field is not that of the texts


def read_usable(config: TextConfig, left_out: Counts) -> Iterator[Document]:
    """The documents that can be used; the others are added to `left_out`."""
    used, refuses = False, config.max_unusable_fraction < 1
    for document in read_documents(config):
        if not document.problem:
            used = True
            yield document
            continue
        number = count(left_out, document.problem, document.name)
        if document.problem == "no text" and number == SURE and not used and refuses:
            return


def check_usable(config: TextConfig, used: Counter[SplitName], left_out: Counts) -> None:
    """Raise where too many documents were left out, or a split has none."""
    # An empty document is no loss.
    lost = total({kind: left_out[kind] for kind in left_out if kind != "empty"})
    if lost > config.max_unusable_fraction * (lost + used.total()):
        raise UserError(
            got=tell_left_out(left_out, used.total(), "documents"),
            expected=f"at most {config.max_unusable_fraction:.3g} of them, empty ones aside",
            do="write them again, as UTF-8, or name the field of the texts with --data.text-field; "
            "--data.max-unusable-fraction 1 goes on without them",
        )
    if not used["train"] or not used["heldout"]:
        raise UserError(
            got=f"{used['train']} documents to train on, {used['heldout']} held out; "
            + tell_left_out(left_out, used.total(), "documents"),
            expected="documents to train on and, chosen by hash, held-out ones",
            do="give more documents, or change --data.heldout-fraction",
        )
