"""What the processes of a job tell each other in its key-value store: what failed, what they see.

Every process calls each function, in the same order of names. Starts and ends no process.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ..errors import UserError
from ..records import artifacts, objects, store
from .distributed import POLL_S, barrier, unique, wait_for_all
from .private import job

SHARED, SHARED_S = ".shared-", 10.0  # a file of this name appears on all hosts within


def exchange(name: str, text: str) -> dict[int, str]:
    """What each process says under a unique name, by process; waits for all, in any thread."""
    own = job()
    if own.client is None:
        return {0: text}
    own.client.key_value_set(f"{name}/{own.process_id}", text)
    wait_for_all(f"said {name}")
    return _said(name)


def _said(name: str) -> dict[int, str]:
    found = job().client.key_value_dir_get(f"{name}/")
    return {int(key.split("/")[-1]): text for key, text in found}


def from_first(name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns in process 0, as JSON: one asks a disk or a store, and all see the same.

    An OSError or a ValueError of it is raised in all of them.
    """
    if job().client is None:
        return make()
    answer: list[Any] = []
    if job().process_id == 0:
        try:
            answer = [make()]
        except OSError as error:
            answer = [None, error.errno or errno.EIO, str(error)]
        except ValueError as error:
            answer = [None, 0, str(error)]
    made, *failed = json.loads(exchange(name, json.dumps(answer))[0])
    if failed:
        code, text = failed
        raise OSError(code, text) if code else ValueError(text)
    return made


class PeerFailed(Exception):
    """Another process could not do its part, and says why."""


def agreed_failure(name: str, error: Exception | None) -> Exception | None:
    """The failure of any process, the same in all; None where none failed. Call it in every one."""
    own = job()
    if own.client is None:
        return error
    if error is not None:
        # One that gave up because of another process repeats what that one said.
        who = "" if isinstance(error, PeerFailed) else f"process {own.process_id}: "
        text = who + (str(error) or repr(error)).splitlines()[0]
        own.client.key_value_set(f"{name}/{own.process_id}", text)
    wait_for_all(f"said {name}")
    found = _said(name)
    return next((PeerFailed(found[index]) for index in sorted(found)), None)


def wait_unless_failed(wait: Callable[[], object], name: str) -> None:
    """Wait for what all processes take part in; PeerFailed once one of them failed under `name`.

    `wait` is left behind in its thread then: nothing ends a wait in Orbax's barriers before their
    own limit, which is that of a save.
    """
    if job().client is None:
        wait()
        return
    done: concurrent.futures.Future[object] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(wait())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="waiting", daemon=True).start()
    while not concurrent.futures.wait([done], POLL_S).done:
        if failed := _said(name):
            raise PeerFailed(failed[min(failed)])
    done.result()


def check_same_run(about: dict[str, Any]) -> None:
    """Refuse settings, code, packages, data or devices that another process does not have.

    Called before anything is compiled: programs that differ wait for each other, for hours.
    """
    if job().client is None:
        return
    facts = about["config"] | about["identity"] | about["tunable"]
    facts |= {f"code of {file}": digest[:12] for file, digest in about["sources"].items()}
    found = about["provenance"]
    facts |= {"Python": found["python"]} | found["packages"]
    facts |= {name: _flags(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    local = jax.local_devices()
    facts |= {"devices": f"{len(local)} x {local[0].device_kind}"}
    check_same(facts, "start every process with the same command, image and code")


def _flags(name: str) -> str:
    """Of a compiler, without the folders that each host may dump to."""
    return " ".join(f for f in os.environ.get(name, "").split() if "dump_to" not in f)


def check_same_program(step: Any, *args: Any) -> None:
    """Refuse a jitted function that another process lowers to another program."""
    if job().client is None:
        return
    text = step.lower(*args).as_text()
    facts = {"the program of a step": hashlib.sha256(text.encode()).hexdigest()[:12]}
    check_same(
        facts,
        "look for what differs by host in the step, such as a set, a clock or a "
        "random number: JAX_DUMP_IR_TO=DIR writes each program",
    )


def check_same(facts: dict[str, Any], do: str) -> None:
    """Refuse facts that differ from those of process 0; the error names who has others."""
    own: dict[str, Any] = json.loads(json.dumps(facts))
    first = from_first(unique("facts"), lambda: facts)
    names = [name for name in own | first if own.get(name) != first.get(name)]
    words = [f"{name} {own.get(name)!r}, not {first.get(name)!r}" for name in names]
    said = exchange(unique("differs"), "; ".join(words[:5]))
    odd = {
        text: [i for i, other in said.items() if other == text] for text in said.values() if text
    }
    if odd:
        raise UserError(
            got="; and ".join(
                f"process {', '.join(map(str, sorted(who)))}: {text}" for text, who in odd.items()
            ),
            expected="what process 0 has, in all processes",
            do=do,
        )


def lack_artifacts(run_dir: Path, step: int) -> bool:
    """Whether those of a step were not made: process 0 alone writes them."""
    return bool(from_first(unique("shown"), lambda: not artifacts.are_there(run_dir, step)))


def check_shared(folder: Path) -> None:
    """Refuse a folder that is not the same in all processes: process 0 puts a file there."""
    own = job()
    if own.client is None:
        return
    folder = folder.absolute()
    file = folder / f"{SHARED}{exchange(unique('file'), secrets.token_hex(8))[0]}"
    if own.process_id == 0:
        for name in store.names(folder):
            if name.startswith(SHARED):  # of a process that was killed
                store.remove(folder / name)
        store.write(file, b"", sync=False)
    seen = _wait_for(folder, file.name, 1)
    answers = exchange(unique("shared"), "" if seen else "not seen")
    if own.process_id == 0:
        store.remove(file)
    if blind := [str(index) for index in sorted(answers) if answers[index]]:
        raise UserError(
            got=f"{folder}, where process {', '.join(blind)} does not see the files of process 0",
            expected="a folder that all processes share",
            do="take a --run-dir on a file system that every host mounts under the same path",
        )


def check_folder(given: str, local: Path) -> bool:
    """Refuse a run folder that is not the same in all processes.

    given: as the setting names it; local: the same, or its copy if it is in a bucket. True where
    each process has a copy on a disk of its own.
    """
    if objects.is_url(given):
        return _check_bucket(given, local)
    check_shared(local)
    return False


def _check_bucket(url: str, copy: Path) -> bool:
    own = job()
    if own.client is None:
        return False
    if len({*exchange(unique("bucket"), url).values()}) > 1:
        raise UserError(
            got=f"--run-dir {url}, and another one in another process",
            expected="the same in all processes",
            do="give every process the same --run-dir",
        )
    token = exchange(unique("copies"), secrets.token_hex(8))[0]
    store.write(copy / f"{SHARED}{token}-{own.process_id}", b"", sync=False)
    barrier("copies")
    seen = _wait_for(copy, f"{SHARED}{token}", own.num_processes)
    counts = {int(text) for text in exchange(unique("seen"), str(seen)).values()}
    store.remove(copy / f"{SHARED}{token}-{own.process_id}")
    if url.startswith("s3:") and counts not in ({own.num_processes}, {1}):
        raise UserError(
            got=f"{own.num_processes} processes, of which some share the folder {copy.absolute()}",
            expected="one process on each host, or all on one: s3:// is written from local copies",
            do="start one process a host, or take a --run-dir on gs:// or on a shared disk",
        )
    if url.startswith("s3:"):
        check_same_place(copy)
    return counts == {1}


def check_same_place(folder: Path) -> None:
    """Refuse a folder with another path in another process: Orbax compares the paths of a save."""
    paths = exchange(unique("place"), str(folder.absolute()))
    if other := [path for path in paths.values() if path != paths[0]]:
        raise UserError(
            got=f"{other[0]} in one process and {paths[0]} in another",
            expected="one path for the local copy of the run on every host",
            do="start every process in a working folder of the same path",
        )


def _wait_for(folder: Path, beginning: str, number: int) -> int:
    """How many files of such names appear in a folder, at most `number`, within SHARED_S."""
    end_s = time.monotonic() + SHARED_S
    while True:
        # NFS remembers for a while what was not there; a listing of the parent asks its server.
        with contextlib.suppress(OSError):
            store.names(folder.parent)
        seen = sum(name.startswith(beginning) for name in store.names(folder))
        if seen >= number or time.monotonic() > end_s:
            return seen
        time.sleep(POLL_S)
