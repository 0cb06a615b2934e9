"""Documents that cannot be used are named, and refused where they are more than a share."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ...errors import UserError
from .. import usable
from ..prepare import describe, prepare
from ..settings import DataConfig
from ..shards import read_manifest


def test_unusable_documents_are_counted_and_named(config: DataConfig) -> None:
    for number in range(7):
        (Path(config.paths[0]) / f"bad{number}.txt").write_bytes(b"\xff" * number)
    (Path(config.paths[0]) / "new\nline\udcff.txt").write_bytes(b"\0")
    manifest = prepare(replace(config, max_unusable_fraction=0.2), show=False)
    assert manifest.unusable["empty"] == [1, ["bad0.txt:0"]]
    assert manifest.unusable["not UTF-8"][0] == 6
    assert sum(manifest.total("documents", split) for split in ("train", "heldout")) == 60
    assert (
        "left out 8 of 68 documents; empty: 1 (bad0.txt:0); not UTF-8: 6 (bad1.txt:0, "
        in describe(manifest)
    )
    assert r"not text: 1 ('new\nline\\xff.txt:0')" in describe(manifest)
    describe(manifest).encode()
    stored = read_manifest(config.prepared_dir)
    assert stored.unusable["not UTF-8"][0] == 6


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
@pytest.mark.parametrize(
    ("bad", "refused"), [(b"\xff", [5, 30]), (b"\0", [5]), (b"\xff\xfea", [4])]
)
def test_more_unusable_documents_than_a_share_are_refused(
    config: DataConfig, tokenizer: str, bad: bytes, refused: list[int]
) -> None:
    config = replace(config, tokenizer=tokenizer, vocab_size=400)
    for count in (3, *refused):
        for number in range(count):
            (Path(config.paths[0]) / f"bad{number}.txt").write_bytes(bad)
        if count == 3:  # of 63: 4.8 %
            prepare(config, show=False)
        else:
            with pytest.raises(
                UserError, match=rf"left out {count} of {60 + count} documents"
            ) as caught:
                prepare(config, show=False)
            assert "bad0.txt:0" in str(caught.value)
            assert "--data.max-unusable-fraction" in str(caught.value)
            prepare(replace(config, max_unusable_fraction=1.0), show=False)
        # What was prepared once is opened without a word: its runs go on.
        assert prepare(replace(config, max_unusable_fraction=0.0), show=False).complete
        shutil.rmtree(config.prepared_dir)


def test_empty_documents_are_no_loss(config: DataConfig) -> None:
    for number in range(90):
        (Path(config.paths[0]) / f"empty{number}.txt").touch()
    manifest = prepare(replace(config, max_unusable_fraction=0.0), show=False)
    assert "empty: 90 (" in describe(manifest)


def test_a_refused_corpus_leaves_nothing_behind(config: DataConfig) -> None:
    (Path(config.paths[0]) / "zz.jsonl").write_text("{}\n" * 60)
    with pytest.raises(UserError, match="no text: 60"):
        prepare(config, show=False)
    assert [p.name for p in Path(config.prepared_dir).iterdir()] == [".lock"]
    (Path(config.paths[0]) / "zz.jsonl").unlink()
    assert prepare(config, show=False).complete


def test_a_wrong_field_is_found_before_the_whole_corpus_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usable, "SURE", 20)
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 90)
    config = DataConfig(paths=(str(tmp_path),), prepared_dir=str(tmp_path / "out"))
    for tokenizer in ("byte", "bpe"):
        with pytest.raises(UserError, match=r"(?s)no text: 20 .*--data.text-field"):
            prepare(replace(config, tokenizer=tokenizer), show=False)
    with pytest.raises(UserError, match=r"no text: 90 "):
        prepare(replace(config, tokenizer="byte", max_unusable_fraction=1.0), show=False)
