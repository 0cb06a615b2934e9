"""A fit in a bucket by two hosts with disks of their own: what one reads, the other has written."""

import os
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint.experimental.v1._src.saving import execution

from ..errors import Exit
from ..posterior.draws import read_draws
from ..records import store
from ..records.mirror import Mirror
from ..runtime import agree
from ..runtime.tests.buckets import bucket, variables
from ..runtime.tests.children import Child, command, start_two

__all__ = ["bucket"]  # a fixture
FIT = "fit --model.name eight_schools --nuts.chunk 250 --nuts.warmup 250 --trackers --steps 4"
UNTIL = "--nuts.target-ess 9000 --eval-every-steps 2 --save-every-steps 2 --artifacts-every-steps 2"


def on_host(folder: Path, *argv: str) -> None:
    folder.mkdir()
    os.chdir(folder)
    # Two hosts have the same paths on two disks. Here they are two paths on one.
    agree.check_same_place = lambda folder: None
    execution._check_directory_consistency = lambda path: None
    command(*argv)


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)  # which has copies of all
def test_two_hosts_judge_the_draws_of_both(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/bayes/run"
    argv = f"{FIT} {UNTIL} --run-dir".split()
    both = start_two(
        on_host,
        (tmp_path / "0", *argv, url),
        (tmp_path / "1", *argv, url),
        folder=tmp_path,
        **variables(),
    )
    alone = Child(on_host, tmp_path / "2", *argv, "run", log=tmp_path / "log2", devices=4)
    for child in (*both, alone):
        assert child.code() == Exit.DONE, child.log.read_text()
    copy = Mirror(url, reader=True)
    copy.local = tmp_path / "copy"
    copy.fetch()
    expected, found = tmp_path / "2" / "run", read_draws(copy.local / "outputs")
    for name, values in read_draws(expected / "outputs")["posterior"].data_vars.items():
        np.testing.assert_array_equal(found["posterior"][name], values, err_msg=str(name))
    names = ("ess_bulk", "ess_tail", "rhat_rank")
    judged, wanted = (
        [[r[n] for n in names] for r in store.read_lines(f / "metrics.jsonl") if names[0] in r]
        for f in (copy.local, expected)
    )
    assert judged == wanted
    assert len(judged) == 2
    assert store.exists(copy.local / "report.html")
