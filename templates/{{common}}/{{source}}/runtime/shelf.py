"""Where checkpoints are kept: on a disk, in a bucket that Orbax writes to, or in one by a copy.

Orbax knows `gs://` and no `s3://`: there it writes to a local folder, whose files are uploaded. The
copy stays, so that a restore downloads only what is not there. Decides nothing about checkpoints.
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

import jax
from orbax.checkpoint import v1 as ocp

from ..errors import UserError
from ..records import mirror, objects, store
from .agree import exchange, from_first
from .private import writer_of

DAMAGED = ".damaged"  # in the name of one that was set aside, or of the object that says so
THREADS = 8


@dataclass(frozen=True)
class Shelf:
    """The checkpoints of a run; `name` is that of one, such as 00000200."""

    folder: PurePath
    """Where they count."""
    arrays: PurePath
    """Where Orbax reads and writes them: the same, or the local copy."""
    own_disks: bool = False
    """Each process has a copy of its own, so that what it writes no other one sees."""

    @property
    def is_copied(self) -> bool:
        """Whether Orbax works on a local copy."""
        return self.arrays != self.folder

    def context(self, timeout_s: float) -> ocp.Context:
        """Orbax's options of a save."""
        limit = math.ceil(timeout_s)
        if not self.own_disks:
            return ocp.Context(async_options=ocp.options.AsyncOptions(timeout_secs=limit))
        # One file a chunk, so that the files of all processes together are the checkpoint. Made at
        # once, because Orbax begins to write in a folder that it still has to make otherwise.
        saving = ocp.options.ArrayOptions.Saving(use_ocdbt=False, use_replica_parallel=False)
        return ocp.Context(
            async_options=ocp.options.AsyncOptions(
                timeout_secs=limit, create_directories_asynchronously=False
            ),
            array_options=ocp.options.ArrayOptions(saving=saving),
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=None),
        )

    def make(self, name: str) -> None:
        """Make room for a new one; FileExistsError where there is one. Process 0 calls it."""
        mark = self.folder / f"{name}{DAMAGED}.json"
        if self.is_remote and store.exists(mark):
            store.remove(self.folder / name)
            store.remove(mark)
        store.make_new_folder(self.folder / name)

    def clear_copy(self, name: str) -> None:
        """Delete what a killed save left in the copy."""
        if self.is_copied and (self.own_disks or jax.process_index() == 0):
            store.remove(self.arrays / name)

    @property
    def is_remote(self) -> bool:
        return not isinstance(self.folder, Path)

    def written(self, name: str) -> list[str]:
        """Files that this process wrote; on disks of their own, others may have them too."""
        if not isinstance(self.arrays, Path):
            return []  # the store is asked once, by `hash`
        here = [str(f) for f in store.files(self.arrays / name) if _is_content(f)]
        return here if self.own_disks else [file for file in here if _is_ours(file)]

    def without_others(self, written: list[str], key: str) -> list[str]:
        """Those that no process before this one has. Waits for all processes."""
        held = exchange(f"{key} files", json.dumps(written))
        before = {f for index in range(jax.process_index()) for f in json.loads(held[index])}
        return [file for file in written if file not in before]

    def clear_copies(self) -> None:
        """Delete the copies of checkpoints that have been deleted in the bucket."""
        if isinstance(self.arrays, Path) and self.is_copied:
            for name in {*store.names(self.arrays)} - {*store.names(self.folder)}:
                store.remove(self.arrays / name)

    @property
    def asks_others(self) -> bool:
        """Whether `hash` is to be called by all processes, once all have written."""
        return self.own_disks or (self.is_remote and not self.is_copied)

    def hash(self, name: str, files: list[str], key: str) -> dict[str, str]:
        """File -> hash of those that this process wrote, which are in `folder` afterwards.

        key: of this save, the same in all processes. files: those of `written`, which a bucket that
        Orbax writes to need not be asked for.
        """
        if self.is_remote and not self.is_copied:
            there = from_first(f"{key} written", lambda: self._content(name))
            return {file: there[file] for file in there if _is_ours(file)}
        if self.own_disks:
            files = self.without_others(files, key)
        hashes = {file: store.sha256(self._here(name, file)) for file in files}
        if self.is_copied:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda file: self._upload(name, file), files))
        return hashes

    def listed(self, name: str) -> dict[str, str]:
        """Every file that is there, but the lists of hashes and hidden ones, with the digest of it
        where Orbax's files are in a bucket."""
        if not isinstance(self.folder, Path):
            found = objects.found(self.folder / name)
        else:
            found = {str(file): "" for file in store.files(self.folder / name)}
        # Hidden ones are of the file system or of a file manager; Orbax reads none.
        hidden = [f for f in found if not _is_content(Path(f)) or Path(f).name.startswith(".")]
        return {file: digest for file, digest in found.items() if file not in hidden}

    def complaint(self, name: str, expected: dict[str, str], there: dict[str, str]) -> str | None:
        """How files differ from their hashes, or None; each process looks at its share.

        there: as `listed`. OSError where it cannot be told, which is no damage.
        """
        self._check_kind(name, expected, there)
        index, count = (0, 1) if self.own_disks else (jax.process_index(), jax.process_count())
        share = sorted(expected)[index::count]
        kind = "SHA-256"
        if self.is_copied:
            with ThreadPoolExecutor(THREADS) as pool:
                found = pool.map(lambda file: self._brought(name, file, expected[file]), share)
                got = dict(zip(share, found, strict=True))
        elif self.is_remote:
            kind, got = "digest", {file: there.get(file) for file in share}
        else:
            got = {file: self._sha256(name, file) for file in share}
        for file in share:
            digest = got[file]
            if digest is None:
                return f"{file} is missing, expected {kind} {expected[file]}"
            if digest != expected[file]:
                return f"{file} has {kind} {digest}, expected {expected[file]}"
        return None

    def _check_kind(self, name: str, expected: dict[str, str], there: dict[str, str]) -> None:
        """Refuse hashes of another kind than what there is: they tell nothing of damage."""
        own = self.is_remote and not self.is_copied  # digests of the store, else SHA-256
        for file in expected.keys() & there.keys():
            got = there[file] if own else ""
            if (kind := _kind(expected[file])) != _kind(got):
                raise UserError(
                    got=f"{self.folder / name} with hashes of another kind of store: "
                    f"{kind or 'SHA-256'}, where {_kind(got) or 'SHA-256'} can be had",
                    expected="a run copied from gs:// to gs://, each object as a whole, or between "
                    "disks and s3://",
                    do="go on with it where it was; no checkpoint was set aside",
                )

    def discard(self, name: str) -> None:
        """Delete one. A kill leaves none that looks committed."""
        if self.is_remote:
            store.remove(self.folder / name / "files-0.json")
        store.remove(self.folder / name)
        if self.is_copied:
            store.remove(self.arrays / name)

    def set_aside(self, name: str, complaint: str, number: int) -> str:
        """Keep a damaged one, but not as a checkpoint; the name of it, or of its mark."""
        aside = f"{name}{DAMAGED}-{number}"
        if isinstance(self.folder, Path):
            store.rename(self.folder / name, self.folder / aside)
            return aside
        aside = f"{name}{DAMAGED}.json"
        store.write_json(self.folder / aside, {"complaint": complaint})
        return aside

    def _content(self, name: str) -> dict[str, str]:
        """Every object of one, but the lists of hashes, with its digest."""
        found = objects.found(self.folder / name)
        return {file: digest for file, digest in found.items() if _is_content(Path(file))}

    def _here(self, name: str, file: str) -> Path:
        return Path(self.arrays / name / file)

    def _sha256(self, name: str, file: str) -> str | None:
        try:
            return store.patiently(store.sha256, self._here(name, file))
        except FileNotFoundError:
            return None

    def _upload(self, name: str, file: str) -> None:
        objects.upload(self._here(name, file), self.folder / name / file)

    def _brought(self, name: str, file: str, expected: str) -> str | None:
        """The hash of a file of the copy, which is downloaded where it is not the expected one."""
        if (got := self._sha256(name, file)) == expected:
            return got
        try:
            store.write(
                self._here(name, file),
                lambda part: objects.download(self.folder / name / file, part.name),
            )
        except FileNotFoundError:
            return None
        return self._sha256(name, file)


def shelf_of(run_dir: str, *, reader: bool = False, own_disks: bool = False) -> Shelf:
    """That of a run folder, by its setting."""
    folder = store.place(run_dir) / "checkpoints"
    if isinstance(folder, Path):
        folder = folder.absolute()
    is_s3 = str(folder).startswith("s3:")
    arrays = mirror.local(run_dir, reader).absolute() / "checkpoints" if is_s3 else folder
    return Shelf(folder, arrays, own_disks and is_s3)


def note_of(folder: PurePath) -> PurePath:
    """The file that tells the step of the newest checkpoint that was ever saved in a folder."""
    return folder.with_name(f"{folder.name}.json")


def noted_step(folder: PurePath) -> int | None:
    """That step; None where none was saved."""
    note = note_of(folder)
    return int(store.read_json(note)["step"]) if store.exists(note) else None


def _kind(digest: str) -> str:
    """What a store calls its digest, such as md5Hash or crc32c; "" of a SHA-256."""
    return digest.rpartition(" ")[0]


def _is_ours(file: str) -> bool:
    return writer_of(Path(file)) == jax.process_index()


def _is_content(file: Path) -> bool:
    return not (file.name.startswith("files-") and len(file.parts) == 1)
