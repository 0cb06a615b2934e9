"""Copies of the state on the hosts' own disks: a restart from them repeats fewer steps.

    LOCAL_FOLDER/RUN/TOKEN/00000240/PARTS.npz    PARTS: a hash of which parts of which arrays

A checkpoint is whole, and any number of devices restores it. A copy is what one process holds, for
a job of the same mesh: quick to write, and lost with its host. It is named by what is in it, not by
who wrote it. So a process takes the one on its disk, or gets it from any process that has the same
parts: a replica on another slice, or the neighbour that keeps them for it. Where nobody has some of
the parts, the run goes on from a checkpoint; see tiers.py.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import secrets
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..contract import State
from ..errors import UserError
from ..records import objects, store
from ..run_config import RunConfig
from .agree import agreed_failure, exchange, from_first
from .distributed import unique
from .parts import Pairs, array_of, devices_of, moved, names_of_parts, parts_of

log = logging.getLogger(__name__)

TOKEN = "local_copies.json"  # in the run folder: which copies are those of the run


class LocalCopies:
    """Those of one run; at most one is written at a time."""

    def __init__(self, run_config: RunConfig, run_dir: Path, abstract: State) -> None:
        """run_dir: on a disk; abstract: shapes of the state with their shardings."""
        self._abstract, self._names = abstract, names_of_parts(abstract)
        self._process, self._count = jax.process_index(), jax.process_count()
        self._mirrors = run_config.local_mirror and len({*self._names.values()}) > 1
        sizes = {len(each) for each in devices_of(_mesh(abstract)).values()}
        if self._mirrors and len(sizes) > 1:
            raise UserError(
                got=f"--local-mirror with processes of {sizes} devices",
                expected="the same number in each",
                do="start all processes alike, or leave it out",
            )
        token = from_first(unique("token"), functools.partial(_token, run_dir / TOKEN))
        name = hashlib.sha256(run_config.run_dir.encode()).hexdigest()[:12]
        place = _on_this_host(run_config.local_folder) / name
        self.folder = place / token
        _keep_only(token, place)  # others are of earlier runs of this name
        self._thread: threading.Thread | None = None

    def save(
        self, step: int, state: State, manifest: dict[str, Any], durable: Callable[[], None]
    ) -> None:
        """Start writing; returns once the arrays are in the host's memory.

        `durable` returns when all else that belongs to this step is on disk.
        """
        self.wait()
        about = {"manifest": np.frombuffer(json.dumps(manifest).encode(), np.uint8)}
        neighbour = (self._process - 1) % self._count
        copies = {self._names[self._process]: {**about}}
        if self._mirrors:
            copies.setdefault(self._names[neighbour], {**about})
        to_next = tuple((index, (index + 1) % self._count) for index in range(self._count))
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(self._abstract), strict=True)
        for number, (array, like) in enumerate(leaves):
            made = {self._process: array}
            if self._mirrors:  # one array at a time: devices rarely have room for another state
                made[neighbour] = moved(array, like, to_next)
            for process, each in made.items():
                copy = copies[self._names[process]]
                copy |= {_key(number, slot): part for slot, part in parts_of(each, like).items()}
        key = unique(f"copy {step}")
        self._thread = threading.Thread(
            target=self._write, args=(f"{step:08d}", copies, durable, key), name="local copy"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the newest copy is written, or was given up."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def restore(self, newest: int) -> tuple[State, dict[str, Any]] | None:
        """State and manifest of the newest copies that are whole, and not older than that step."""
        said = exchange(unique("copies"), json.dumps(store.names(self.folder)))
        steps = {name for text in said.values() for name in json.loads(text) if name.isdigit()}
        for name in sorted((each for each in steps if int(each) >= newest), reverse=True):
            with contextlib.ExitStack() as stack:
                held = {
                    path.stem: stack.enter_context(np.load(path))
                    for path in sorted((self.folder / name).glob("*.npz"))
                    if _is_sound(path)
                }
                said = exchange(unique(f"copies of {name}"), json.dumps(sorted(held)))
                has = {index: json.loads(text) for index, text in said.items()}
                sources = {i: _source(i, parts, has) for i, parts in self._names.items()}
                if lacking := [str(index) for index in sources if sources[index] is None]:
                    words = "local copies of step %d: nobody has that of process %s"
                    log.warning(words, int(name), ", ".join(lacking))
                    continue
                state = self._load(
                    held, _rounds({i: s for i, s in sources.items() if s is not None})
                )
                return state, self._manifest(held, has)
        return None

    def clear(self) -> None:
        """Delete those that this process sees."""
        _keep_only("", self.folder.parent)

    def _write(
        self, name: str, copies: dict[str, Any], durable: Callable[[], None], key: str
    ) -> None:
        """They count where all that belongs to their step is on disk, in every process."""
        failure: Exception | None = None
        try:
            durable()
        except Exception as error:
            failure = error
        if (failure := agreed_failure(key, failure)) is None:
            try:
                for parts, arrays in copies.items():
                    content = functools.partial(_write_arrays, arrays=arrays)
                    store.write(self.folder / name / f"{parts}.npz", content, sync=False)
            except Exception as error:
                failure = error
            failure = agreed_failure(f"{key} written", failure)
        if failure is None:
            _keep_only(name, self.folder)
            return
        log.warning("no local copy of step %d: %s; the run goes on", int(name), failure)
        with contextlib.suppress(OSError):
            store.remove(self.folder / name)

    def _load(self, held: Mapping[str, Any], rounds: list[Pairs]) -> State:
        """Each process takes its parts from its own copy, or gets them from one that has them."""

        def whole(number: int, like: Any) -> jax.Array:
            def part(process: int | None) -> dict[int, np.ndarray] | None:
                if process is None or self._names[process] not in held:
                    return None
                copy, first = held[self._names[process]], _key(number, "")
                slots = [int(key.removeprefix(first)) for key in copy if key.startswith(first)]
                return {slot: copy[_key(number, slot)] for slot in slots}

            array = array_of(part(self._process), like)
            for pairs in rounds:
                sent = array_of(part(dict(pairs).get(self._process)), like)
                got = moved(sent, like, pairs)
                array = got if self._process in dict(pairs).values() else array
            return array

        leaves, tree = jax.tree.flatten(self._abstract)
        return jax.tree.unflatten(tree, [whole(*each) for each in enumerate(leaves)])

    def _manifest(self, held: Mapping[str, Any], has: dict[int, list[str]]) -> dict[str, Any]:
        teller = min(index for index, names in has.items() if names)
        own = ""
        if teller == self._process:
            own = next(iter(held.values()))["manifest"].tobytes().decode()
        return dict(json.loads(exchange(unique("manifest"), own)[teller]))


def forget_copies(run_dir: Path) -> None:
    """Let no later start take copies that are older than what this one saves."""
    if jax.process_index() == 0:
        store.remove(run_dir / TOKEN)


def _on_this_host(folder: str) -> Path:
    """The folder that a setting names here."""
    found = os.path.expandvars(folder)
    if "$" in found or objects.is_url(found):
        raise UserError(
            got=f"--local-folder {found}",
            expected="a folder on a disk or in the memory of each host",
            do="set the variable in every process" if "$" in found else "take --run-dir for it",
        )
    return Path(found).absolute()


def _keep_only(name: str, folder: Path) -> None:
    with contextlib.suppress(OSError):  # what cannot be deleted is not taken either
        for other in {*store.names(folder)} - {name}:
            store.remove(folder / other)


def _token(path: Path) -> str:
    if not store.exists(path):
        store.write_json(path, {"token": secrets.token_hex(6)})
    return str(store.read_json(path)["token"])


def _mesh(abstract: State) -> Any:
    return jax.tree.leaves(abstract)[0].sharding.mesh


def _key(number: int, slot: int | str) -> str:
    return f"{number}-{slot}"


def _source(process: int, parts: str, has: Mapping[int, list[str]]) -> int | None:
    """The process whose copy one takes: its own where it has one; None = nobody has it."""
    found = [index for index in sorted(has) if parts in has[index]]
    return process if process in found else next(iter(found), None)


def _rounds(sources: dict[int, int]) -> list[Pairs]:
    """Process -> whose copy it takes, as moves in which each process sends to one at most."""
    moves = [(source, to) for to, source in sources.items() if source != to]
    rounds: list[Pairs] = []
    while moves:
        now: dict[int, int] = {}
        for source, to in moves:
            now.setdefault(source, to)
        rounds.append(tuple(now.items()))
        moves = [move for move in moves if move not in now.items()]
    return rounds


def _write_arrays(file: Any, arrays: dict[str, Any]) -> None:
    np.savez(file, **arrays)


def _is_sound(path: Path) -> bool:
    """Whether each part has its checksum, which `zipfile` keeps."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return False
