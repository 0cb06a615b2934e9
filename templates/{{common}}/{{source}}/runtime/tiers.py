"""Where a run goes on from and what it saves: checkpoints, and between them local copies."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import jax

from ..contract import State
from ..errors import UserError
from ..records import store
from ..run_config import RunConfig, due
from .changes import check_identity
from .checkpoint import Checkpoints, described
from .local_copies import LocalCopies, forget_copies
from .shelf import DAMAGED, noted_step

log = logging.getLogger(__name__)


class Tiers:
    """What a run has saved. `LocalCopies` are made where a folder for them is set."""

    def __init__(
        self, run_dir: Path, checkpoints: Checkpoints, abstract: State, run_config: RunConfig
    ) -> None:
        """run_dir: on a disk; abstract: shapes of the state with their shardings."""
        self._checkpoints, self._abstract, self._config = checkpoints, abstract, run_config
        self._run_dir, self._copies = run_dir, None
        if run_config.local_mirror and not run_config.local_folder:
            raise UserError(
                got="--local-mirror without --local-folder",
                expected="a folder on each host's own disk, or in its memory",
                do="add --local-folder /dev/shm/copies, or leave it out",
            )
        if run_config.local_folder:
            self._copies = LocalCopies(run_config, run_dir, abstract)
        self._one = threading.Lock()
        self.from_copies = False
        """The state that was restored is in no checkpoint yet."""

    def restore(
        self, about: dict[str, Any], defaults: dict[str, Any]
    ) -> tuple[State, dict[str, Any]] | None:
        """The newest state and its manifest; None for a run that has saved nothing.

        `about` and `defaults`: see `Checkpoints.restore`.
        """
        if self._copies:
            newest = next(iter(self._checkpoints.steps(repair=True)), 0)
            if self._checkpoints.lacks(newest):
                self._say("going back to checkpoint %d: local copies are not taken", newest)
                self._copies.forget()
            elif found := self._copies.restore(newest):
                check_identity(self._copies.folder, found[1], about, defaults)
                words = "step %d comes from local copies; the newest checkpoint is of step %d"
                self._say(words, found[1]["step"], newest)
                self.from_copies = found[1]["step"] > newest
                return found
        if (found := self._checkpoints.restore(self._abstract, about, defaults)) is None:
            check_none_lost(self._checkpoints.folder)
        if not self._copies:
            forget_copies(self._run_dir)
        return found

    def _say(self, words: str, *numbers: int) -> None:
        if jax.process_index() == 0:
            log.info(words, *numbers)

    def due(self, step: int) -> bool:
        """Whether a step has a local copy."""
        return self._copies is not None and due(step, self._config.local_every_steps)

    def save(
        self,
        step: int,
        state: State,
        about: dict[str, Any],
        durable: Callable[[], None],
        *,
        planned: bool,
        copied: bool,
        rotate: bool,
    ) -> None:
        """Start a checkpoint if it is `planned`, and a local copy if it is to be `copied`.

        `durable` and `rotate`: see `Checkpoints.save`.
        """

        def one_at_a_time() -> None:  # of two saves
            with self._one:
                durable()

        if self._copies and copied and rotate:
            self._copies.save(step, state, described(step, state, about), one_at_a_time)
        if planned:
            self._checkpoints.save(step, state, about, one_at_a_time, rotate=rotate)

    def wait(self, *, planned: bool = True) -> str | None:
        """Wait for the saves in progress, that of a checkpoint if `planned`; its error, or None."""
        if self._copies:
            self._copies.wait()
        return self._checkpoints.wait() if planned else None

    def check_last(self) -> None:
        """Wait for the saves in progress; UserError where the newest checkpoint was not saved."""
        if (error := self.wait()) is not None:
            raise UserError(
                got=f"the last checkpoint could not be saved: {error}",
                expected=f"room for it in {self._checkpoints.folder.parent}",
                do="free some space and run the same command again: it goes on from the last "
                "checkpoint that was saved",
            )

    def end(self) -> None:
        """Delete the copies of a run that has ended: its last checkpoint has it all."""
        if self._copies:
            self._copies.clear()


def check_none_lost(folder: PurePath) -> None:
    """Raise where a run has saved, though no checkpoint in `folder` can be used any more.

    To begin anew would delete the records and outputs that are left of it.
    """
    run_dir, aside = folder.parent, [name for name in store.names(folder) if DAMAGED in name]
    step = noted_step(folder)
    ended = store.exists(run_dir / "summary.json")
    if step is None and not aside and not ended:
        return  # it was killed before its first save, and begins again
    saved = "a run that has saved" if step is None else f"a run that was saved at step {step}"
    raise UserError(
        got=f"{run_dir}, {saved}, without a checkpoint that can be used"
        + f" (damaged: {', '.join(aside)})" * bool(aside),
        expected=f"at least one in {folder}",
        do="put one back from a copy, or begin anew with another --run-dir; this folder keeps "
        "its records and outputs",
    )
