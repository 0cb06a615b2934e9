"""A language model whose run and prepared text are in a bucket, used from several folders."""

import os
import time
from pathlib import Path, PurePath
from typing import Any

import pytest

from ..errors import Exit
from ..records import objects, store
from ..records.mirror import Mirror, local
from ..runtime import lock
from ..runtime.tests.buckets import bucket, variables
from ..runtime.tests.children import Child, command
from ..text.prepare import prepare
from ..text.settings import DataConfig
from .test_resume import TINY

__all__ = ["bucket"]  # a fixture


def command_in(folder: Path, *argv: str) -> None:
    """A command of a host of its own: nothing but the bucket is there."""
    folder.mkdir()
    os.chdir(folder)
    command(*argv)


def test_trained_evaluated_and_sampled_from_a_bucket(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        "".join(f'{{"text": "line {n} of a text"}}\n' for n in range(400))
    )
    run = f"{bucket}/llm/run"
    data = f"--data.prepared-dir {bucket}/llm/text --data.paths {tmp_path / 'corpus.jsonl'}"
    said = {}
    for name, line in (
        ("train", f"{TINY} {data} --run-dir {run} --steps 2"),
        ("train-more", f"train --run-dir {run} --steps 3"),
        ("evaluate", f"evaluate --run-dir {run}"),
        ("report", f"report --run-dir {run}"),
    ):
        log = tmp_path / f"{name}.log"
        child = Child(command_in, tmp_path / name, *line.split(), log=log, **variables())
        assert child.code() == Exit.DONE, log.read_text()
        said[name] = log.read_text()
    assert "resumed at step 2" in said["train-more"]
    assert "bits per byte" in said["evaluate"]
    found = objects.found(store.place(run))
    assert {"inputs/manifest.json", "report.html", "checkpoints.json"} <= found.keys()
    assert "manifest.json" in objects.found(store.place(f"{bucket}/llm/text"))


def test_prepared_text_that_was_not_sent_is_sent_by_the_same_command(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.jsonl").write_text("".join(f'{{"text": "line {n}"}}\n' for n in range(400)))
    settings = DataConfig(paths=("c.jsonl",), prepared_dir=f"{bucket}/unsent", tokenizer="byte")
    with monkeypatch.context() as broken:
        broken.setattr(Mirror, "send", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(settings, show=False)
    there = store.place(settings.prepared_dir)
    prepare(settings, show=False)
    sent = objects.found(there)
    assert "manifest.json" in sent
    assert len(sent) == 6
    store.remove(there)  # someone empties the folder
    prepare(settings, show=False)
    assert objects.found(there) == sent


def prepare_in(folder: Path, *argv: str) -> None:
    """`prepare` that takes seconds, between numbers that it gives to others often."""
    lock.COUNT_S, lock.BUCKET_WATCH_S = 0.2, 2.0
    write = store.write_json

    def slowly(path: PurePath, value: Any, **options: Any) -> None:
        if path.name == "manifest.json":
            print("prepares", flush=True)
            time.sleep(1.5)
        write(path, value, **options)

    store.write_json = slowly
    command_in(folder, "prepare", *argv)


def test_of_two_hosts_that_prepare_one_folder_one_waits(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("".join(f'{{"text": "line {n}"}}\n' for n in range(400)))
    folder = store.place(f"{bucket}/shared-text")
    line = ["--data.prepared-dir", str(folder), "--data.paths", str(tmp_path / "c.jsonl")]
    line += ["--data.tokenizer", "byte"]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    first = Child(prepare_in, tmp_path / "0", *line, log=logs[0], **variables())
    first.wait_for(lambda: store.exists(folder / "lock.json"))
    second = Child(prepare_in, tmp_path / "1", *line, log=logs[1], **variables())
    assert [first.code(), second.code()] == [Exit.DONE] * 2, [log.read_text() for log in logs]
    assert "waiting for it" in logs[1].read_text()
    assert "waiting for it" not in logs[0].read_text()
    sent = objects.found(folder)
    assert "manifest.json" in sent
    assert "lock.json" not in sent
    copies = [tmp_path / str(i) / local(str(folder)) for i in range(2)]
    for name in sent:
        assert (copies[0] / name).read_bytes() == (copies[1] / name).read_bytes()
    assert "prepares\n" in logs[0].read_text()
    assert "prepares\n" not in logs[1].read_text(), "it downloads what the first one has made"


def test_what_is_not_there_is_named(bucket: str, tmp_path: Path) -> None:
    for name, run in (
        ("evaluate", f"{bucket}/nothing/run"),
        ("report", f"{bucket}/nothing/run"),
        ("report", f"{bucket}-of-nobody/run"),
    ):
        log = tmp_path / f"{name}-{len(run)}.log"
        line = [name, "--run-dir", run]
        child = Child(command_in, log.with_suffix(""), *line, log=log, **variables())
        assert child.code() == Exit.USER, log.read_text()
        assert run in log.read_text()
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_scheme_that_is_not_known_is_refused(command: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = Child(command_in, tmp_path / "x", command, "--data.prepared-dir", "az://a/b", log=log)
    assert child.code() == Exit.USER, log.read_text()
    assert "gs://BUCKET/FOLDER" in log.read_text()
