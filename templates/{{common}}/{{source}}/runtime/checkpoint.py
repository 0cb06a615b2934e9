"""Asynchronous checkpoints that are verified before they are trusted.

    checkpoints/00000200/state/...       the arrays, written by Orbax
    checkpoints/00000200/manifest.json   step, cursor, configuration, tree
    checkpoints/00000200/files-0.json    SHA-256 of each file that process 0 wrote; one per process

Orbax restores a flipped byte silently and ignores a missing commit marker on local disks. So here
the files-*.json of all processes, written last, commit a checkpoint, and their hashes are compared
before a restore.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ..contract import State
from ..errors import UserError
from ..records import store
from ..run_config import RETIRED, option
from .distributed import all_agree, barrier
from .private import writer_of

log = logging.getLogger(__name__)
FORMAT = 1  # of such a folder; a newer one is refused
CANDIDATES = 16  # how many of the newest checkpoints a restore looks at


class Checkpoints:
    """The checkpoint folder of one run; at most one save runs at a time."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder.absolute(), keep
        self._thread: threading.Thread | None = None
        self._error: str | None = None

    def save(
        self,
        step: int,
        state: State,
        about: dict[str, Any],
        durable: Callable[[], None] = lambda: None,
    ) -> None:
        """Start saving; returns once the arrays are copied. `about` goes to the manifest.

        `durable` returns when all else that belongs to this step is on disk: it is waited for
        before the checkpoint counts.
        """
        self.wait()
        path = self._path(step)
        manifest = about | {
            "format": FORMAT,
            "step": step,
            "processes": jax.process_count(),
            "tree": describe_tree(state),
        }
        try:
            response = ocp.save_async(path / "state", state)
        except Exception as error:
            self._report(path, error)
            return
        self._thread = threading.Thread(
            target=self._commit, args=(path, response, manifest, durable), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> str | None:
        """Wait for the save in progress; returns the error of the newest save, or None."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._error

    def _commit(
        self, path: Path, response: Any, manifest: dict[str, Any], durable: Callable[[], None]
    ) -> None:
        try:
            response.result()
            durable()
            process = jax.process_index()
            if process == 0:
                store.write_json(path / "manifest.json", manifest)
            own = [file for file in _files(path) if writer_of(file) == process]
            hashes = {str(file): store.sha256(path / file) for file in own}
            store.write_json(path / f"files-{process}.json", hashes)
            if process == 0:
                self._delete_old()
            self._error = None
        except Exception as error:
            self._report(path, error)

    def _report(self, path: Path, error: Exception) -> None:
        # The run continues: earlier checkpoints are untouched, and the next save may find space.
        self._error = (str(error) or repr(error)).splitlines()[0][:300]
        store.remove(path)
        free = shutil.disk_usage(self._folder.parent).free
        log.warning(
            "checkpoint %s was NOT saved: %s; %.1f GB are free there; earlier ones are untouched",
            path.name,
            self._error,
            free / 1e9,
        )

    def _delete_old(self) -> None:
        committed = [step for step in self._steps() if self._committed(step)]
        if self._keep:
            for step in committed[: -self._keep]:
                store.remove(self._path(step))

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
        # A setting that was part of the identity once, and is none now, may differ.
        free = about["config"].keys() - about["identity"]
        saved = {n: v for n, v in manifest["identity"].items() if n not in free}
        _check_identity(path, saved, about["identity"], defaults)
        before, now = manifest["config"], about["config"]
        other = [n for n in before if n[:4] != "run." and now.get(n, before[n]) != before[n]]
        settings = [option(n, before[n]) for n in other]
        _check_tree(path, manifest["tree"], describe_tree(abstract), settings)
        return load(path, abstract), manifest

    def newest(self, *, repair: bool = True) -> tuple[Path, dict[str, Any]] | None:
        """Folder and manifest of the newest sound checkpoint, if there is one.

        `repair` renames damaged ones and deletes incomplete ones. A command that only reads must
        not, since a run may be saving there.
        """
        for step in self._agreed_steps(repair):
            path, complaint = self._path(step), self._complaint(step)
            if all_agree(complaint is None):
                manifest = store.read_json(path / "manifest.json")
                if manifest["format"] > FORMAT:
                    raise UserError(
                        got=f"{path} in format {manifest['format']}",
                        expected=f"format {FORMAT} or older",
                        do="use the project's newer code that wrote it, or take another --run-dir",
                    )
                return path, manifest
            complaint = complaint or "another process found it damaged"
            if repair:
                self._set_aside(path, complaint)
            else:
                log.warning("checkpoint %s is damaged (%s): passed over", path.name, complaint)
        return None

    def _agreed_steps(self, repair: bool) -> list[int]:
        """Committed steps, newest first, as process 0 sees them."""
        steps = self._steps()
        if repair and jax.process_index() == 0:
            for step in steps:
                if not self._committed(step):
                    store.remove(self._path(step))
        newest = [step for step in reversed(steps) if self._committed(step)][:CANDIDATES]
        if jax.process_count() > 1:
            padded = np.array(newest + [-1] * (CANDIDATES - len(newest)))
            newest = [int(s) for s in multihost_utils.broadcast_one_to_all(padded) if s >= 0]
        return newest

    def _complaint(self, step: int) -> str | None:
        """What is wrong with a checkpoint's files, or None; each process checks its share."""
        path = self._path(step)
        try:
            expected: dict[str, str] = {}
            for name in store.names(path):
                if name.startswith("files-") and name.endswith(".json"):
                    expected |= store.read_json(path / name)
            for name in sorted(expected)[jax.process_index() :: jax.process_count()]:
                if not store.exists(path / name):
                    return f"{name} is missing, expected SHA-256 {expected[name]}"
                if (got := store.sha256(path / name)) != expected[name]:
                    return f"{name} has SHA-256 {got}, expected {expected[name]}"
        except (OSError, ValueError) as error:
            return f"unreadable: {error}"
        return None

    def _set_aside(self, path: Path, complaint: str) -> None:
        barrier(f"set aside {path.name}")
        if jax.process_index() == 0:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            store.rename(path, aside)
            log.warning(
                "checkpoint %s is damaged (%s): set aside as %s", path.name, complaint, aside
            )
        barrier(f"set {path.name} aside")

    def _steps(self) -> list[int]:
        return sorted(int(name) for name in store.names(self._folder) if name.isdigit())

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}"

    def _committed(self, step: int) -> bool:
        path = self._path(step)
        try:
            processes = store.read_json(path / "manifest.json")["processes"]
        except (OSError, ValueError, KeyError):
            processes = 1  # damaged or missing: if it was committed, `restore` sets it aside
        return all(store.exists(path / f"files-{i}.json") for i in range(processes))


def load(path: Path, abstract: Any) -> Any:
    """The arrays of a checkpoint that `abstract` names, with its shardings; verifies nothing."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load(path / "state", abstract)


def describe_tree(tree: Any) -> dict[str, str]:
    """Path -> dtype[shape] of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): f"{x.dtype}{list(x.shape)}" for p, x in leaves}


def _check_identity(
    path: Path, saved: dict[str, Any], must_match: dict[str, Any], defaults: dict[str, Any]
) -> None:
    ours, saved = RETIRED | must_match, defaults | saved
    # A field that only the code has cannot be compared. A field that only the checkpoint has was
    # removed from the code; RETIRED lists those whose behaviour the code has kept.
    names = [n for n in saved if n not in ours or saved[n] != ours[n]]
    if names:
        begun_with = "the data and the code that it began with"
        if all(n in must_match and (n in defaults or "." in n) for n in names):
            begun_with = " ".join(option(n, saved[n]) for n in names)
        raise UserError(
            got=", ".join(f"{n}={ours.get(n, 'gone (run_config.py: RETIRED)')}" for n in names),
            expected=", ".join(f"{n}={saved[n]}" for n in names) + f", as in {path}",
            do=f"run with {begun_with}, or start another run with --run-dir",
        )


def _check_tree(
    path: Path, saved: dict[str, str], ours: dict[str, str], settings: Iterable[str] = ()
) -> None:
    """`settings`: those of the checkpoint that are others now."""
    names = sorted(n for n in saved | ours if saved.get(n) != ours.get(n))
    if names:
        some = "; ".join(f"{n}: {ours.get(n, 'nothing')}" for n in names[:4])
        raise UserError(
            got=f"a state with {some} ({len(names)} arrays differ)",
            expected="; ".join(f"{n}: {saved.get(n, 'nothing')}" for n in names[:4])
            + f", as in {path}",
            do="the code that makes the state has changed, or a setting: undo that"
            + "".join(f" ({words} was it)" for words in settings)
            + ", or take another --run-dir",
        )


def _files(path: Path) -> list[Path]:
    state = [Path("state") / file for file in store.files(path / "state")]
    return [Path("manifest.json"), *state]
