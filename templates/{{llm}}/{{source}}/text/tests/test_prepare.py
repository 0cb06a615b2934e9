"""Shards hold the corpus exactly, survive a kill at any point, and never pass when damaged."""

import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from ...errors import UserError
from .. import prepare as prepare_module
from .. import usable
from ..corpus import read_documents
from ..prepare import describe, prepare
from ..settings import DataConfig
from ..shards import open_split, open_tokenizer, read_manifest


def files_of(config: DataConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(config.prepared_dir).iterdir()}


def save_words(path: Path, words: int) -> str:
    """A foreign tokenizer.json: known words, or <unk>; not able to give a text back."""
    vocab = {"<unk>": 0, "return": words - 2, "<s>": words - 1}
    vocab |= {f"word{n}": n for n in range(1, words - 2)}
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["byte", "bpe", "json"])
def test_every_document_is_in_one_split_and_comes_back(
    config: DataConfig, kind: str, tmp_path: Path
) -> None:
    kind = save_words(tmp_path / "words.json", 70_000) if kind == "json" else kind
    config = replace(config, tokenizer=kind, vocab_size=400)
    manifest = prepare(config, show=False)
    tokenizer = open_tokenizer(config.prepared_dir)
    lossless = open_split(config.prepared_dir, "heldout").lossless
    assert lossless == (not kind.endswith("json"))
    assert lossless == ("no bits per byte" not in describe(manifest))
    assert manifest.dtype == ("uint32" if kind.endswith("json") else "uint16")
    assert tokenizer.sha256 == manifest.tokenizer_sha256
    documents = list(read_documents(config))
    for name in ("train", "heldout"):
        split = open_split(config.prepared_dir, name)
        texts = [document.text for document in documents if document.split == name]
        starts = split.document_starts.tolist()
        assert len(split.shards) > 1
        assert len(starts) - 1 == len(texts) == manifest.total("documents", name)
        assert starts[-1] == manifest.total("tokens", name)
        assert split.text_bytes == sum(len(text.encode()) for text in texts)
        for number, text in enumerate(texts):
            start, end = starts[number : number + 2]
            tokens = split.read(start, end, end - start)
            assert tokens[0] == split.bos_id == tokenizer.bos_id
            np.testing.assert_array_equal(tokens[1:], tokenizer.encode_batch([text])[0])
            assert kind.endswith("json") or tokenizer.decode(tokens) == text
    assert list(open_split(config.prepared_dir, "heldout").texts()) == [
        document.text.encode() for document in documents if document.split == "heldout"
    ]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_trained_bpe_has_not_seen_what_is_held_out(config: DataConfig, split: str) -> None:
    config = replace(config, tokenizer="bpe", vocab_size=400)
    for salt in itertools.count():
        (Path(config.paths[0]) / "rare.txt").write_text(f"{salt}\n" + " zyzzyva" * 500)
        if any(d.split == split for d in read_documents(config) if d.name == "rare.txt:0"):
            break
    prepare(config, show=False)
    (word,) = open_tokenizer(config.prepared_dir).encode_batch([" zyzzyva"])
    assert (len(word) == 1) == (split == "train")


def test_two_at_once_work_as_one(
    config: DataConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, tokenizer="bpe", vocab_size=400)
    whole = replace(config, prepared_dir=config.prepared_dir + "-whole")
    prepare(whole, show=False)
    caplog.set_level("INFO")
    reads: list[DataConfig] = []
    monkeypatch.setattr(usable, "read_documents", lambda c: reads.append(c) or read_documents(c))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare(config, show=False), range(4)))
    assert files_of(config) == files_of(whole)
    assert all(manifest.complete for manifest in found)
    assert "waiting for it" in caplog.text
    assert len(reads) == 2  # for the BPE, and for the shards


def test_parts_of_a_killed_process_are_cleared_away(config: DataConfig) -> None:
    litter = Path(config.prepared_dir) / "train-00000.tokens.npy.0123abcd.part"
    litter.parent.mkdir()
    litter.write_bytes(b"half")
    prepare(config, show=False)
    assert not litter.exists()


def test_prepared_text_inside_the_corpus_is_not_prepared_again(config: DataConfig) -> None:
    config = replace(config, prepared_dir=str(Path(config.paths[0]) / "deep" / "prepared"))
    first = prepare(config, show=False)
    again = replace(config, prepared_dir=str(Path(config.paths[0]) / "again"))
    assert prepare(config, show=False).corpus_sha256 == first.corpus_sha256
    assert prepare(again, show=False).corpus_sha256 == first.corpus_sha256
    (Path(config.prepared_dir) / "manifest.json").unlink()
    assert prepare(config, show=False).corpus_sha256 == first.corpus_sha256


def test_a_path_that_is_not_there_is_said_before_what_the_folder_holds(
    config: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        prepare(replace(config, paths=(config.paths[0] + "s",)), show=False)
    assert not Path(config.prepared_dir).exists()
    prepare(config, show=False)
    with pytest.raises(UserError, match=r"(?s)texts'.*does not exist.*text"):
        prepare(replace(config, paths=(config.paths[0] + "s",)), show=False)
    with pytest.raises(UserError, match="is a file"):
        prepare(replace(config, prepared_dir=config.paths[0] + "/00.txt"), show=False)


def test_a_second_call_does_nothing(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(config, show=False)
    before = {p: p.stat().st_mtime_ns for p in Path(config.prepared_dir).iterdir()}
    monkeypatch.setattr(usable, "read_documents", lambda config: pytest.fail("read again"))
    assert prepare(config, show=False).shards[0].source_sha256 == first.shards[0].source_sha256
    assert before == {p: p.stat().st_mtime_ns for p in Path(config.prepared_dir).iterdir()}


def test_another_request_for_the_same_folder_is_refused(config: DataConfig, tmp_path: Path) -> None:
    prepare(config, show=False)
    with pytest.raises(UserError, match=r"heldout_fraction=0.25(.|\n)*heldout_fraction=0.3"):
        prepare(replace(config, heldout_fraction=0.3), show=False)
    with (Path(config.paths[0]) / "07.txt").open("a") as file:
        file.write("more")
    with pytest.raises(UserError, match="sources="):
        prepare(config, show=False)
    Path(config.paths[0]).rename(tmp_path / "moved")  # as on a machine that got only the shards
    assert prepare(config, show=False).complete


def test_a_changed_tokenizer_file_is_noticed(config: DataConfig, tmp_path: Path) -> None:
    config = replace(config, tokenizer=save_words(tmp_path / "words.json", 300))
    prepare(config, show=False)
    save_words(tmp_path / "words.json", 301)
    with pytest.raises(UserError, match="sources="):
        prepare(config, show=False)


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the code may catch it."""


def test_a_kill_before_any_write_loses_at_most_that_write(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, tokenizer="bpe", vocab_size=400)
    whole = replace(config, prepared_dir=config.prepared_dir + "-whole")
    writes, encoded, left = 0, 0, -1
    write, write_shard = Path.replace, prepare_module._write_shard

    def counted_replace(self: Path, target: Path) -> Path:
        nonlocal writes, left
        writes, left = writes + 1, left - 1
        if left == 0:
            raise KilledError
        return write(self, target)

    def counted_shard(*args: object) -> dict:
        nonlocal encoded
        encoded += 1
        return write_shard(*args)

    monkeypatch.setattr(Path, "replace", counted_replace)
    monkeypatch.setattr(prepare_module, "_write_shard", counted_shard)
    prepare(whole, show=False)
    shards, wanted, total = encoded, files_of(whole), writes
    assert shards > 5
    assert total == 1 + 1 + 3 * shards + sum(name.endswith(".txt") for name in wanted) + 1

    for kill_at in range(1, total + 1, 3):
        left, encoded = kill_at, 0
        with pytest.raises(KilledError):
            prepare(config, show=False)
        if (Path(config.prepared_dir) / "manifest.json").exists():
            with pytest.raises(UserError, match="goes on where it stopped"):
                open_split(config.prepared_dir, "train")
        prepare(config, show=False)
        assert encoded <= shards + 1
        assert files_of(config) == wanted
        for path in Path(config.prepared_dir).iterdir():
            path.unlink()


def test_a_killed_process_is_gone_on_with(config: DataConfig) -> None:
    package = __package__.rpartition(".")[0]
    script = f"""
import time, {package}.prepare as p, {package}.settings as c
p.SHARD_BYTES, write = 3000, p._write_shard
p._write_shard = lambda *args: (time.sleep(0.05), write(*args))[1]
p.prepare(c.DataConfig(**{vars(config)!r}), show=False)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    second = Path(config.prepared_dir) / "train-00001.starts.npy"
    while process.poll() is None and not second.exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = read_manifest(config.prepared_dir)
    assert not done.complete
    with pytest.raises(UserError, match=r"heldout_fraction=0.25(.|\n)*heldout_fraction=0.3"):
        prepare(replace(config, heldout_fraction=0.3), show=False)
    times = {p: p.stat().st_mtime_ns for p in second.parent.glob("train-00000.*")}
    prepare(config, show=False)
    assert times == {p: p.stat().st_mtime_ns for p in second.parent.glob("train-00000.*")}
    whole = replace(config, prepared_dir=config.prepared_dir + "-whole")
    prepare(whole, show=False)
    assert files_of(config) == files_of(whole)


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
@pytest.mark.parametrize(
    "name", ["train-00001.tokens.npy", "train-00000.starts.npy", "heldout-00000.txt"]
)
def test_a_damaged_shard_is_named(config: DataConfig, name: str, damage: str) -> None:
    prepare(config, show=False)
    path = Path(config.prepared_dir) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flip" else data[:-1])
    if damage == "missing":
        path.unlink()
    split = "heldout" if name.startswith("heldout") else "train"
    (expected,) = (s.files[name] for s in read_manifest(path.parent).shards if name in s.files)
    with pytest.raises(UserError, match=expected) as caught:
        open_split(config.prepared_dir, split)
    assert str(path) in str(caught.value)


def test_a_damaged_tokenizer_or_manifest_is_named(config: DataConfig) -> None:
    config = replace(config, tokenizer="bpe", vocab_size=300)
    manifest = prepare(config, show=False)
    folder = Path(config.prepared_dir)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match=manifest.tokenizer_sha256):
        open_tokenizer(folder)
    path = folder / "manifest.json"
    whole = path.read_text()
    for text in (whole[:-9], whole.replace('"format": 1', '"format": 99'), "{}", "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json"):
            read_manifest(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_split(folder, "train")


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_an_empty_split_is_refused_and_leaves_the_folder_usable(
    config: DataConfig, fraction: float
) -> None:
    with pytest.raises(UserError, match="heldout-fraction"):
        prepare(replace(config, heldout_fraction=fraction), show=False)
    assert prepare(config, show=False).request["heldout_fraction"] == config.heldout_fraction


def test_shards_made_anew_in_the_same_process_are_read_anew(config: DataConfig) -> None:
    prepare(config, show=False)
    before = open_split(config.prepared_dir, "train").read(0, 20, 20)
    for path in Path(config.prepared_dir).iterdir():
        path.unlink()
    prepare(replace(config, tokenizer="bpe", vocab_size=300), show=False)
    assert not np.array_equal(open_split(config.prepared_dir, "train").read(0, 20, 20), before)


def test_preparing_needs_no_jax() -> None:
    package = __package__.rpartition(".")[0]
    script = f"import sys, {package}.prepare; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
