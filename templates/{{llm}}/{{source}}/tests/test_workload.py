"""What a start says of the corpus, and which process compresses it."""

from pathlib import Path

import jax
import pytest

from .. import evaluate
from ..evaluate import baselines
from ..runtime.sharding import make_mesh
from ..text.shards import open_split
from ..workload import make_workload
from . import tiny


@pytest.mark.parametrize(
    ("content", "reason", "level"), [(b"\xff", "not UTF-8", "WARNING"), (b"", "empty", "INFO")]
)
def test_each_start_names_the_documents_that_were_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str, level: str
) -> None:
    config = tiny.with_text(tmp_path)
    for number in range(2):
        (tmp_path / f"bad{number}.txt").write_bytes(content)
    caplog.set_level("INFO")
    for _ in range(2):  # the second finds the text prepared
        caplog.clear()
        make_workload(config, make_mesh(config.mesh))
        (record,) = [r for r in caplog.records if "left out" in r.message]
        assert record.message.startswith(f"left out 2 of 42 documents; {reason}: 2 (bad0.txt")
        assert record.levelname == level


def test_only_the_first_process_compresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.with_text(tmp_path)
    make_workload(config, make_mesh(config.mesh))
    split = open_split(config.data.prepared_dir, "heldout")
    assert len(baselines(split, config.data.seq_len)["baselines"]) == 4
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(evaluate, "compress_heldout", lambda *_: pytest.fail("compressed twice"))
    assert baselines(split, config.data.seq_len) == {}
