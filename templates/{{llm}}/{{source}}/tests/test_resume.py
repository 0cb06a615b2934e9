"""A language model's run, killed and resumed through the command line, bit for bit."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ..errors import Exit
from ..records.store import read_lines
from ..runtime.tests.children import Child, command, kill_thrice, optimised, start_two

TINY = (
    "train --data.tokenizer byte --data.seq-len 32 --data.batch-size 8 "
    "--data.eval-rows 8 --model.layers 2 --model.width 16 --model.heads 2 --model.kv-heads 1 "
    "--model.head-dim 8 --model.mlp-width 16 --model.scan-unroll 1 --optim.horizon-steps 200 "
    "--data.heldout-fraction 0.2 --log-every-steps 1 --eval-every-steps 0 --trackers tensorboard "
)
# Sums in another order; Adam's first steps take the sign of the smallest gradients.
CLOSE = 1e-3


def command_line(tmp_path: Path, name: str, options: str) -> list[str]:
    corpus = tmp_path.parent / "corpus.jsonl"
    if not corpus.exists():  # an epoch is some 35 steps: a long run begins several
        texts = ["".join(f"line {n} of {i}\n" for n in range(i + 8)) for i in range(40)]
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    paths = f"--data.paths {corpus} --data.prepared-dir {corpus.with_suffix('')}"
    return f"{TINY} {paths} --run-dir {tmp_path / name} {options}".split()


def start(
    tmp_path: Path, name: str, options: str, devices: int = 1, run: Callable[..., None] = command
) -> Child:
    argv = command_line(tmp_path, name, options)
    return Child(run, *argv, log=tmp_path / "log", devices=devices)


def losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_lines(folder / "metrics.jsonl")}


def test_three_kills_change_no_bit(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "killed", tmp_path / "log"
    start_run = partial(start, tmp_path, run=optimised)  # as users' runs are compiled
    steps = 20 + kill_thrice(
        lambda: start_run("killed", "--steps 10000 --save-every-steps 9"), run_dir
    )
    assert start_run("killed", f"--steps {steps}").code() == Exit.DONE, log.read_text()
    assert start_run("calm", f"--steps {steps}").code() == Exit.DONE, log.read_text()
    assert losses(run_dir) == losses(tmp_path / "calm")
    assert list(losses(run_dir)) == list(range(1, steps + 1))


def test_eight_devices_then_one(tmp_path: Path) -> None:
    for devices, steps, mesh in (
        (8, 6, "--mesh.fsdp 2 --mesh.tensor 2"),
        (1, 12, "--mesh.fsdp 1 --mesh.tensor 1"),  # else that of the run's config.json
    ):
        child = start(tmp_path, "moved", f"--steps {steps} {mesh}", devices)
        assert child.code() == Exit.DONE, child.log.read_text()
    assert start(tmp_path, "stayed", "--steps 12").code() == Exit.DONE
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "stayed"), rel=CLOSE)


def test_two_processes_train_and_score_as_one(tmp_path: Path) -> None:
    options = "--steps 12 --eval-every-steps 6 --mesh.fsdp 2"
    argv = command_line(tmp_path, "two", options)
    pair = start_two(command, argv, argv, folder=tmp_path)
    codes = [child.code() for child in pair]
    assert codes == [Exit.DONE] * 2, "\n".join(child.log.read_text() for child in pair)
    assert start(tmp_path, "one", "--steps 12 --eval-every-steps 6").code() == Exit.DONE
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=CLOSE)
    two, one = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("two", "one"))
    assert one["epochs"] == pytest.approx(12 * 8 * 32 / one["train_tokens"], rel=0.01)
    for name in ("heldout_loss", "heldout_bits_per_byte"):
        assert two[name] == pytest.approx(one[name], rel=CLOSE)
    assert two["baselines"] == one["baselines"]


def test_a_mistake_that_only_the_first_process_sees_ends_both(tmp_path: Path) -> None:
    wrong = "--data.paths nowhere.txt --data.prepared-dir other"
    argv = command_line(tmp_path, "run", f"--steps 4 {wrong}")
    pair = start_two(command, argv, argv, folder=tmp_path)
    assert [child.code() for child in pair] == [Exit.USER] * 2, pair[1].log.read_text()
    assert "nowhere.txt" in pair[0].log.read_text()
    assert "ended because process 0 did" in pair[1].log.read_text()


def test_another_model_tokenizer_or_batch_is_refused(tmp_path: Path) -> None:
    assert start(tmp_path, "run", "--steps 2").code() == Exit.DONE
    log = tmp_path / "log"
    for options, says in (
        ("--model.width 32", "model.width=16"),
        ("--data.tokenizer bpe --data.vocab-size 300", "byte"),
        ("--data.batch-size 6", "data.batch_size=8"),
        ("--data.paths nowhere.txt --data.prepared-dir other", "nowhere.txt"),
        ("--model.heads 3 --model.kv-heads 2", "kv_heads"),
        ("--mesh.fsdp 3", "number of cpu devices"),
    ):
        log.write_text("")
        assert start(tmp_path, "run", f"--steps 4 {options}").code() == Exit.USER, log.read_text()
        text = log.read_text()
        for word in ("got:", "expected:", "to do:", says):
            assert word in text, (options, text)
        assert "Traceback" not in text
