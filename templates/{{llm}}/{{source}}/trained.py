"""A trained model as an object: the loss of a text, logits, text. Trains and writes nothing.

    run = open_run("runs/demo")
    run.loss("A text."), run.logits(run.encode("A text.")), run.generate("A te")

It needs no mesh and no start-up by its caller.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from .config import Config
from .data import exact_windows
from .errors import UserError
from .evaluate import make_score
from .generate import decode_stream, make_generate
from .records.mirror import Mirror
from .runtime.saved import find_saved, mesh_that_fits
from .step import Learner, init_state, make_learner, token_logits
from .text.shards import Split, open_split, open_tokenizer, read_manifest
from .text.tokenizer import Tokenizer
from .training.layers import state_specs
from .training.prepared import places


@dataclass(frozen=True)
class Trained:
    """A trained model on the devices that are here. Each method compiles at its first call."""

    learner: Learner
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    step: int
    inputs: Path
    """Where the tokenizer was read from."""
    run_dir: Path
    corpus_sha256: str

    def encode(self, text: str) -> Int[np.ndarray, " T"]:
        """The tokens of a document: BOS, then the text."""
        return np.append(self.learner.bos_id, self.tokenizer.encode_batch([text])[0]).astype("i4")

    def loss(self, text: str) -> float:
        """Mean cross-entropy of a text as a document, nats a token; one without tokens is refused.

        Each token but BOS is scored once, a long text by windows, as `evaluate` does it: with at
        least half a row of context where there is that much.
        """
        ids = self.encode(text)
        windows = exact_windows(np.array([0, len(ids)]), self._seq_len)
        if not len(windows):
            raise UserError(
                got="a text without tokens",
                expected="one token or more: nothing has no mean",
                do="leave empty texts out",
            )

        def read(start: int, stop: int, length: int) -> Int[np.ndarray, " length"]:
            return np.pad(ids[start:stop], (0, length - (stop - start)), constant_values=-1)

        with jax.set_mesh(self.mesh):
            nats, tokens = self._score(self.params, read, windows, lambda: None)
        return nats / tokens

    def logits(self, ids: Sequence[int] | Int[np.ndarray, " T"]) -> Float[np.ndarray, "T V"]:
        """Scores of what follows each id, float32, over the vocabulary without its padding.

        Ids are those of a row: at most `seq_len`, BOS first, as `encode` gives them.
        """
        row, most, vocab_size = np.asarray(ids), self._seq_len, self.learner.vocab_size
        is_row = row.ndim == 1 and 0 < row.size <= most
        if not (is_row and row.min() >= 0 and row.max() < vocab_size):
            raise UserError(
                got=f"{row.size} ids {row} of shape {row.shape}",
                expected=f"one axis of 1 to {most} ids, each from 0 to {vocab_size - 1}",
                do="cut the ids to the length of a row; `encode` makes them from a text",
            )
        padded = np.pad(row, (0, most - len(row)))[None].astype(np.int32)  # one compilation
        return np.array(self._logits(self.params, padded)[0, : len(row), :vocab_size])

    def generate(
        self,
        prompt: str = "",
        *,
        chars: int = 300,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """The text that follows the prompt; with no prompt, from the start of a document.

        It ends after `chars` characters or with the document. The same seed gives the same text.
        """
        return "".join(self.stream(prompt, chars, temperature, top_p, seed))

    def stream(
        self, prompt: str, chars: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[str]:
        """What `generate` returns, piece by piece as it is written."""
        if not (chars >= 0 and temperature >= 0 and 0 < top_p <= 1):
            raise UserError(
                got=f"chars {chars}, temperature {temperature}, top-p {top_p}",
                expected="chars >= 0, temperature >= 0, 0 < top-p <= 1",
                do="temperature 0 always takes the likeliest token; top-p 1 allows every token",
            )
        ids = self.encode(prompt).tolist()
        tokens = self._generate(self.params, ids, seed, temperature, top_p)
        return decode_stream(tokens, self.tokenizer, chars)

    def heldout(self) -> Split:
        """The held-out text of its training, which is not in the run folder."""
        given = self.learner.config.data.prepared_dir
        folder = find_text(self.run_dir, given, "corpus_sha256", self.corpus_sha256)
        return open_split(folder, "heldout")

    @property
    def _seq_len(self) -> int:
        return self.learner.config.data.seq_len

    @cached_property
    def _score(self) -> Callable[..., tuple[float, int]]:
        # A micro-batch may need more memory than these devices have.
        return make_score(self.learner, self.mesh, at_once=1)

    @cached_property
    def _logits(self) -> Callable[..., jax.Array]:
        replicated = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(partial(token_logits, self.learner), out_shardings=replicated)

    @cached_property
    def _generate(self) -> Callable[..., Iterator[int]]:
        return make_generate(self.learner, self.mesh)


def open_run(run_dir: str | Path) -> Trained:
    """The newest checkpoint, verified, with the configuration and the tokenizer of its training.

    The run folder is all that it needs. A run that was begun before release 0.4.0 has no tokenizer
    in it: the one of its prepared text is taken.
    """
    run = Mirror(str(run_dir), reader=True)
    for part in ("config.json", "inputs/"):
        run.fetch(part)
    saved = find_saved(run_dir, Config())
    config, identity = saved.config, saved.manifest["identity"]
    config = replace(
        config,
        # The kernel is chosen for these devices; the packing stays that of the training.
        model=replace(config.model, attention="auto"),
        data=replace(config.data, packing=identity["data.packing"]),
    )
    given, folder = config.data.prepared_dir, run.local
    inputs = find_text(folder, given, "tokenizer_sha256", identity["tokenizer_sha256"])
    text = read_manifest(inputs)
    learner = make_learner(config, text.vocab_size, text.bos_id)
    mesh = mesh_that_fits(config.mesh)
    bare = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
    specs = state_specs(learner.declared, bare)
    params = saved.load({"params": bare["params"]}, {"params": specs["params"]}, mesh)["params"]
    tokenizer, corpus = open_tokenizer(inputs), identity["corpus_sha256"]
    return Trained(learner, params, tokenizer, mesh, saved.step, inputs, folder, corpus)


def find_text(
    run_dir: Path, given: str, part: Literal["tokenizer_sha256", "corpus_sha256"], sha256: str
) -> Path:
    """The folder with the tokenizer of a training, or with all of its prepared text.

    A run keeps its tokenizer. The prepared text is looked for as `given`, below a folder that holds
    the run or below the working folder, and where the training had it.
    """
    of_text = part == "corpus_sha256"
    needed = ("manifest.json", "tokenizer.json", "heldout") if of_text else ()
    own = [run_dir / "inputs"] * (not of_text and (run_dir / "inputs").is_dir())
    found = []
    for place in [*own, *places(run_dir, given, needed)]:
        try:
            open_tokenizer(place)  # so that a damaged one is passed over
            if (got := getattr(read_manifest(place), part)) == sha256:
                return place
            found.append(f"{place} with {part} {got[:12]}")
        except UserError as error:
            found.append(str(error).splitlines()[0].removeprefix("got:").strip())
    raise UserError(
        got="; ".join(found)
        or f"no {given} near {run_dir}, below the working folder, or where it was",
        expected=f"the prepared text of the training, {part} {sha256[:12]}",
        do=f"copy it to ./{given}, or prepare the same text again: "
        f"`prepare --config {run_dir / 'config.json'}`",
    )
