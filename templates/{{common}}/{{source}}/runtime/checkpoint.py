"""Asynchronous checkpoints that are verified before they are trusted.

    checkpoints/00000200/state/...       the arrays, written by Orbax
    checkpoints/00000200/manifest.json   step, cursor, configuration, tree
    checkpoints/00000200/files-0.json    SHA-256 of each file that process 0 wrote; one per process
    checkpoints.json                     step of the newest one, so that its loss is noticed

Orbax restores a flipped byte silently and ignores a missing commit marker on local disks. So here
the files-*.json of all processes, written last, commit a checkpoint, and their hashes are compared
before a restore.
"""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from ..contract import State
from ..errors import UserError
from ..records import store
from ..run_config import RunConfig, due
from .agree import PeerFailed, agreed_failure, from_first, wait_unless_failed
from .changes import check_identity, check_tree, describe_tree, other_settings
from .distributed import all_agree, barrier, unique
from .shelf import DAMAGED, Shelf, note_of, noted_step

log = logging.getLogger(__name__)
FORMAT = 1  # of such a folder; a newer one is refused


@dataclass(frozen=True)
class _Saving:
    """A save in progress."""

    name: str
    key: str  # that all processes give it
    manifest: dict[str, Any]
    made: bool  # its folder is new; a failure deletes it
    rotate: bool


class Checkpoints:
    """The checkpoints of one run; at most one save runs at a time."""

    def __init__(self, shelf: Shelf, run_config: RunConfig) -> None:
        self._shelf, self._run_config = shelf, run_config
        self.folder = shelf.folder
        self._thread: threading.Thread | None = None
        self._error: str | None = None

    def save(
        self,
        step: int,
        state: State,
        about: dict[str, Any],
        durable: Callable[[], None] = lambda: None,
        *,
        rotate: bool = True,
    ) -> None:
        """Start saving; returns once the arrays are copied. `about` goes to the manifest.

        `durable` returns when all else that belongs to this step is on disk: it is waited for
        before the checkpoint counts. With `rotate`, older checkpoints are deleted then.
        """
        self.wait()
        name = f"{step:08d}"
        manifest = described(step, state, about)
        # Until it says otherwise: a thread that ends early has saved nothing.
        self._error = "the save did not come to its end"
        failure: Exception | None = None
        try:
            if jax.process_index() == 0:
                self._shelf.make(name)
            self._shelf.clear_copy(name)
        except OSError as error:  # what is there is not of this save, and stays
            failure = error
        if made := all_agree(failure is None):
            try:
                with self._shelf.context(self._run_config.save_timeout_s):
                    result = ocp.save_async(self._shelf.arrays / name / "state", state).result
            except Exception as error:
                failure = error
        if not made or failure is not None:  # the other processes have to know of it
            result = partial(_fail, failure or PeerFailed("process 0 has no folder for it"))
        saving = _Saving(name, unique(f"save {name}"), manifest, made, rotate)
        self._thread = threading.Thread(
            target=self._commit, args=(saving, result, durable), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> str | None:
        """Wait for the save in progress; returns the error of the newest save, or None."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._error

    def _commit(
        self, saving: _Saving, result: Callable[[], Any], durable: Callable[[], None]
    ) -> None:
        name, process = saving.name, jax.process_index()
        failure: Exception | None = None
        try:
            wait_unless_failed(result, saving.key)
            durable()
            if process == 0:
                store.write_json(self._shelf.arrays / name / "manifest.json", saving.manifest)
            written = self._shelf.written(name)
            if not self._shelf.asks_others:
                self._hash(saving, written)
        except Exception as error:
            failure = error
        # A write may fail in one process alone; the save counts when it has in none.
        failure = agreed_failure(saving.key, failure)
        if failure is None and self._shelf.asks_others:
            try:
                self._hash(saving, written)
                self._shelf.clear_copies()
            except Exception as error:
                failure = error
            failure = agreed_failure(f"{saving.key} hashed", failure)
        if failure is not None:
            self._report(name, failure, made=saving.made and process == 0)
            return
        self._error = None
        if process == 0:
            # Without it nothing is lost but the notice that all checkpoints are.
            with contextlib.suppress(OSError):
                store.write_json(note_of(self.folder), {"step": saving.manifest["step"]})
            if saving.rotate:
                self._delete_old()

    def _hash(self, saving: _Saving, written: list[str]) -> None:
        hashes = self._shelf.hash(saving.name, written, saving.key)
        store.write_json(self.folder / saving.name / f"files-{jax.process_index()}.json", hashes)

    def _report(self, name: str, error: Exception, *, made: bool) -> None:
        """Note and log why a save failed, and delete what it `made`. Raises nothing."""
        # The run continues: earlier checkpoints are untouched, and the next save may find space.
        self._error = (str(error).strip() or repr(error)).splitlines()[0][:300]
        free = ""
        with contextlib.suppress(OSError):
            if made:
                self._shelf.discard(name)
            if isinstance(self.folder, Path):
                free_bytes = shutil.disk_usage(self.folder.parent).free
                free = f"; {free_bytes / 1e9:.1f} GB are free there"
        saved = "checkpoint %s was NOT saved: %s%s; earlier ones are untouched"
        log.warning(saved, name, self._error, free)

    def _delete_old(self) -> None:
        keep, every = self._run_config.keep_checkpoints, self._run_config.keep_every_steps
        if keep:
            passing = [s for s in self._steps() if self._committed(s) and not due(s, every)]
            for step in passing[:-keep]:
                self._shelf.discard(f"{step:08d}")

    def restore(
        self, abstract: State, about: dict[str, Any], defaults: dict[str, Any]
    ) -> tuple[State, dict[str, Any]] | None:
        """Newest sound checkpoint onto `abstract`'s shardings, and its manifest; or None.

        A damaged one is renamed. The `identity` of `about` has to equal the manifest's, `defaults`
        has the values of fields that are newer than the manifest.
        """
        if (found := self.newest()) is None:
            return None
        path, manifest = found
        check_identity(path, manifest, about, defaults)
        check_tree(path, manifest["tree"], abstract, other_settings(manifest, about))
        return load(path, abstract), manifest

    def newest(self, *, repair: bool = True) -> tuple[PurePath, dict[str, Any]] | None:
        """Folder and manifest of the newest sound checkpoint, if there is one.

        `repair` renames damaged ones and deletes incomplete ones. A command that only reads must
        not, since a run may be saving there.
        """
        found = (self.sound(step, repair=repair) for step in self.steps(repair=repair))
        return next(filter(None, found), None)

    def sound(self, step: int, *, repair: bool) -> tuple[PurePath, dict[str, Any]] | None:
        """Folder and manifest of the checkpoint of a step, or None where it is damaged."""
        path, complaint = self._path(step), self._complaint(step)
        if not all_agree(complaint is None):
            complaint = complaint or "another process found it damaged"
            if repair:
                self._set_aside(path, complaint)
            else:
                log.warning("checkpoint %s is damaged (%s): passed over", path.name, complaint)
            return None
        manifest = store.patiently(store.read_json, path / "manifest.json")
        if manifest["format"] > FORMAT:
            raise UserError(
                got=f"{path} in format {manifest['format']}",
                expected=f"format {FORMAT} or older",
                do="use the project's newer code that wrote it, or take another --run-dir",
            )
        return self._shelf.arrays / path.name, manifest

    def lacks(self, newest: int) -> bool:
        """Whether a checkpoint after `newest` was deleted, where none after it was damaged."""

        def look() -> bool:
            marks = [name.partition(DAMAGED) for name in store.names(self.folder)]
            damaged = any(mark and int(name) > newest for name, mark, _ in marks)
            return (noted_step(self.folder) or 0) > newest and not damaged

        return bool(from_first(unique("lacks"), look))

    def steps(self, *, repair: bool) -> list[int]:
        """Committed steps, newest first, as process 0 sees them."""

        def look() -> list[int]:
            committed = {step: self._committed(step) for step in reversed(self._steps())}
            for step in [step for step in committed if repair and not committed[step]]:
                self._shelf.discard(f"{step:08d}")
            return [step for step in committed if committed[step]]

        return list(from_first(unique("steps"), look))

    def _complaint(self, step: int) -> str | None:
        """How files differ from what was committed, or None; OSError where it cannot be told."""
        name, unusable = f"{step:08d}", "a list of its files cannot be used: %s"
        try:
            expected, there = from_first(unique(f"files of {name}"), partial(self._lists, name))
        except (ValueError, FileNotFoundError) as error:  # damaged, or deleted by the run meanwhile
            return unusable % error
        if strange := [file for file in there if file not in expected]:
            return f"{strange[0]} is in no list of its files"
        return self._shelf.complaint(name, expected, there)

    def _lists(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """Files of a checkpoint and their hashes, as they were committed and as they are there."""
        expected: dict[str, str] = {}
        for file in store.names(self.folder / name):
            if file.startswith("files-") and file.endswith(".json"):
                expected |= store.patiently(store.read_json, self.folder / name / file)
        return expected, self._shelf.listed(name)

    def _set_aside(self, path: PurePath, complaint: str) -> None:
        barrier(f"set aside {path.name}")
        if jax.process_index() == 0:
            aside = self._shelf.set_aside(path.name, complaint, time.time_ns())
            log.warning("checkpoint %s is damaged (%s): set aside as %s", path, complaint, aside)
        barrier(f"set {path.name} aside")

    def _steps(self) -> list[int]:
        names = store.names(self.folder)
        mark = f"{DAMAGED}.json"  # of a bucket, where nothing is renamed
        marked = {name.removesuffix(mark) for name in names if name.endswith(mark)}
        return sorted(int(name) for name in {*names} - marked if name.isdigit())

    def _path(self, step: int) -> PurePath:
        return self.folder / f"{step:08d}"

    def _committed(self, step: int) -> bool:
        path = self._path(step)
        try:
            processes = store.read_json(path / "manifest.json")["processes"]
        except (OSError, ValueError, KeyError):
            processes = 1  # damaged or missing: if it was committed, `restore` sets it aside
        return all(store.exists(path / f"files-{i}.json") for i in range(processes))


def described(step: int, state: State, about: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a state."""
    return about | {
        "format": FORMAT,
        "step": step,
        "processes": jax.process_count(),
        "tree": describe_tree(state),
    }


def load(path: PurePath, abstract: Any) -> Any:
    """The arrays of a checkpoint that `abstract` names, with its shardings; verifies nothing."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load(path / "state", abstract)


def _fail(error: Exception) -> None:
    raise error
