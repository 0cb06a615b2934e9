"""Copies of the state on the hosts' own disks: a restart from them repeats fewer steps.

    LOCAL_FOLDER/RUN/TOKEN/00000240/PARTS.npz

RUN is a hash of the run folder, PARTS one of which parts of which arrays are in the file. TOKEN is
what `local_copies.json` of the run folder says: a start that goes on from anything but the newest
copies writes another one there, since what a later step leaves behind may not be mixed with them.

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
import socket
import threading
import zipfile
from collections import Counter
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
SUFFIX = ".npz"


class LocalCopies:
    """Those of one run; at most one is written at a time."""

    def __init__(self, run_config: RunConfig, run_dir: Path, abstract: State) -> None:
        """run_dir: on a disk; abstract: shapes of the state with their shardings."""
        self._abstract, self._names = abstract, names_of_parts(abstract)
        self._process = jax.process_index()
        self._thread: threading.Thread | None = None
        folder = run_config.run_dir.rstrip("/")
        if not objects.is_url(folder):
            folder = str(run_dir.resolve())
        name = hashlib.sha256(folder.encode()).hexdigest()[:12]
        self._place = _on_this_host(run_config.local_folder) / name
        self._token = run_dir / TOKEN
        self._begin(anew=False)
        self._next = self._neighbours() if run_config.local_mirror else {}

    def _begin(self, *, anew: bool) -> None:
        """Find the folder that the token names; `anew` makes all copies of before void."""

        def token() -> str:
            if anew or not store.exists(self._token):
                store.write_json(self._token, {"token": secrets.token_hex(6)})
            return str(store.read_json(self._token)["token"])

        self.folder = self._place / from_first(unique("token"), token)
        _keep_only(self.folder.name, self._place)

    def _neighbours(self) -> dict[int, int]:
        """Process -> the one that keeps its copies too, on another disk; {} where none is needed.

        Processes that share a host and a folder lose their copies together.
        """
        disk = f"{socket.gethostname()} {self._place}"
        said = exchange(unique("disks"), disk)
        disks = Counter(said.values())
        mesh = jax.tree.leaves(self._abstract)[0].sharding.mesh
        sizes = {len(each) for each in devices_of(mesh).values()}
        if len(disks) == 1 or len({*self._names.values()}) == 1:
            if self._process == 0:
                why = "all processes share one disk" if len(disks) == 1 else "each has all parts"
                log.info("local copies are not mirrored: %s", why)
            return {}
        if len(sizes) > 1:
            raise UserError(
                got=f"--local-mirror with processes of {sizes} devices",
                expected="the same number in each",
                do="start all processes alike, or leave it out",
            )
        order, far = sorted(said, key=lambda index: (said[index], index)), max(disks.values())
        return {one: order[(at + far) % len(order)] for at, one in enumerate(order)}

    def save(
        self, step: int, state: State, manifest: dict[str, Any], durable: Callable[[], None]
    ) -> None:
        """Start writing; returns once the arrays are in the host's memory.

        `durable` returns when all else that belongs to this step is on disk.
        """
        self.wait()
        copies: dict[str, dict[str, np.ndarray]] = {self._names[self._process]: {}}
        neighbour = next((one for one, to in self._next.items() if to == self._process), None)
        jax.tree.map(lambda array: array.copy_to_host_async(), state)  # all, then wait for each
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(self._abstract), strict=True)
        for number, (array, like) in enumerate(leaves):
            made = {self._process: array}
            if neighbour is not None:  # one at a time: devices rarely have room for another state
                made[neighbour] = moved(array, like, tuple(self._next.items()))
            for process, each in made.items():
                copy = copies.setdefault(self._names[process], {})
                copy |= {f"{number}-{slot}": part for slot, part in parts_of(each, like).items()}
        for copy in copies.values():
            about = json.dumps({"manifest": manifest, "keys": sorted(copy)})
            copy["about"] = np.frombuffer(about.encode(), np.uint8)
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
        """State and manifest of the newest copies, if they are whole and not older than `newest`.

        Where the run does not go on from the newest that any process has, all copies are void.
        """
        said = exchange(unique("copies"), json.dumps(store.names(self.folder)))
        steps = {name for text in said.values() for name in json.loads(text) if name.isdigit()}
        found = None
        for name in sorted((each for each in steps if int(each) >= newest), reverse=True):
            if found := self._whole(name):
                break
        if found is None or found[1]["step"] < max(map(int, steps)):
            self.forget()
        return found

    def forget(self) -> None:
        """Make all copies void, also those of a disk that is away and comes back."""
        self._begin(anew=True)

    def _whole(self, name: str) -> tuple[State, dict[str, Any]] | None:
        """What `restore` returns, of one step."""
        with contextlib.ExitStack() as stack:
            files = [n for n in store.names(self.folder / name) if n.endswith(SUFFIX)]
            read = {n.removesuffix(SUFFIX): _read(self.folder / name / n) for n in files}
            held = {parts: copy for parts, copy in read.items() if copy}
            for copy in held.values():
                stack.enter_context(copy)
            said = exchange(unique(f"copies of {name}"), json.dumps([*held]))
            has = {index: json.loads(text) for index, text in said.items()}
            sources = {i: _source(i, parts, has) for i, parts in self._names.items()}
            taken = {i: source for i, source in sources.items() if source is not None}
            if lacking := [str(index) for index in sources if index not in taken]:
                if self._process == 0:
                    words = "local copies of step %d: nobody has that of process %s"
                    log.warning(words, int(name), ", ".join(lacking))
                return None
            return self._load(held, _rounds(taken)), self._manifest(held, has)

    def clear(self) -> None:
        """Delete those that this process sees."""
        with contextlib.suppress(OSError):
            store.remove(self._place)

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
                    content = functools.partial(np.savez, **arrays)
                    store.write(self.folder / name / f"{parts}{SUFFIX}", content, sync=False)
            except Exception as error:
                failure = error
            failure = agreed_failure(f"{key} written", failure)
        if failure is None:
            _keep_only(name, self.folder)
            return
        words = "no local copy of step %d in %s, which needs room for two: %s; the run goes on"
        log.warning(words, int(name), self.folder, failure)
        with contextlib.suppress(OSError):
            store.remove(self.folder / name)

    def _load(self, held: Mapping[str, Any], rounds: list[Pairs]) -> State:
        """Each process takes its parts from its own copy, or gets them from one that has them."""

        def whole(number: int, like: Any) -> jax.Array:
            def part(process: int | None) -> dict[int, np.ndarray] | None:
                if process is None or self._names[process] not in held:
                    return None
                copy, first = held[self._names[process]], f"{number}-"
                slots = [int(key.removeprefix(first)) for key in copy if key.startswith(first)]
                return {slot: copy[f"{first}{slot}"] for slot in slots}

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
            own = next(iter(held.values()))["about"].tobytes().decode()
        return dict(json.loads(exchange(unique("manifest"), own)[teller])["manifest"])


def forget_copies(run_dir: Path) -> None:
    """Let no later start take copies that are older than what this one saves."""
    if jax.process_index() == 0:
        store.remove(run_dir / TOKEN)


def _on_this_host(folder: str) -> Path:
    """The folder that a setting names here."""
    found = os.path.expanduser(os.path.expandvars(folder))
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


def _read(path: Path) -> Any:
    """The arrays of a copy by key, or None for one that is damaged, however it is."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:  # each part has a checksum
                return None
        copy = np.load(path)
        about = json.loads(copy["about"].tobytes())
        return copy if {*about["keys"], "about"} == {*copy.files} else None
    except Exception as error:  # of zipfile and NumPy, by what byte has changed
        log.warning("%s cannot be read: %r", path, error)
        return None
