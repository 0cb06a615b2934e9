"""What a message of the language model tells its user to do, done word for word."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from .. import cli, workload
from ..errors import Exit
from ..records import store
from ..run_config import to_dict
from ..runtime.loop import run
from ..runtime.sharding import make_mesh
from ..training import update
from . import tiny


def advice(capsys: pytest.CaptureFixture[str]) -> str:
    """That of the message on standard error."""
    return capsys.readouterr().err.partition("to do:")[2].strip()


@pytest.mark.parametrize(
    ("wrong", "words", "followed"),
    [
        (
            "--model.heads 4 --model.kv-heads 3",
            "--model.kv-heads among [1, 2, 4]",
            "--model.kv-heads 2",
        ),
        ("--model.head-dim 7", "choose 8", "--model.head-dim 8"),
        ("--model.layers 4 --model.scan-unroll 3", "1 compiles", "--model.scan-unroll 1"),
        ("--model.attention cudnn --data.packing segments", "at auto", "--data.packing auto"),
    ],
)
def test_the_advice_on_settings_is_followed(
    wrong: str, words: str, followed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", *wrong.split()])[0] == Exit.USER
    assert words in advice(capsys)
    assert cli.parse(["train", *wrong.split(), *followed.split()])


def test_the_advice_on_non_finite_steps_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = workload.make_workload

    def poisoned(config: Any, mesh: Any) -> Any:
        """From the fifth step on, a learning rate of more than 0.005 ends in NaN."""
        made = make(config, mesh)

        def step(state: Any, batch: Any) -> Any:
            late = (state["step"] >= 4) & (config.optim.learning_rate > 0.005)
            bad = jax.tree.map(lambda x: jnp.where(late, jnp.nan, x), state["params"])
            new, metrics, outputs = made.step(state | {"params": bad}, batch)
            kept = jax.tree.map(lambda x, y: jnp.where(late, x, y), state["params"], new["params"])
            return new | {"params": kept}, metrics, outputs

        return dataclasses.replace(made, step=step)

    monkeypatch.setattr(workload, "make_workload", poisoned)
    config = tiny.with_text(
        tmp_path, steps=8, save_every_steps=4, eval_every_steps=0, max_skipped_steps=2
    )
    store.write_json(tmp_path / "mine.json", to_dict(config))
    train = ["train", "--config", str(tmp_path / "mine.json")]
    assert cli.run(train)[0] == Exit.USER
    do = advice(capsys)
    options = re.findall(r"--optim\.\S+ [^\s:]+", do)
    assert options == ["--optim.learning-rate 0.001"]
    assert re.search(r"--max-skipped-steps 4\b.*JAX_DEBUG_NANS=1", do)
    assert cli.run([*train, *shlex.split(options[0])])[0] == Exit.DONE
    lines = store.read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [r["skipped"] for r in lines if r["step"] == 8] == [0]

    # Of a setting that defines the run, the message names the value that it began with.
    assert cli.run([*train, "--seed", "5"])[0] == Exit.USER
    (seed,) = re.findall(r"run with (--seed \d+),", advice(capsys))
    assert cli.run([*train, *seed.split(), "--optim.learning-rate", "0.001"])[0] == Exit.DONE


def test_jax_debug_nans_stops_at_the_first_nan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(update, "FASTEST", 1e31)  # such a rate is not taken otherwise
    config = tiny.with_text(tmp_path, steps=4, eval_every_steps=0)
    changes: dict[str, Any] = {"learning_rate": 1e30, "weight_decay": 0.0, "micro_batches": 1}
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **changes))
    mesh = make_mesh(config.mesh)
    made = workload.make_workload(config, mesh)
    jax.config.update("jax_debug_nans", True)  # as the variable does: a context would hide a fault
    try:
        with pytest.raises(FloatingPointError, match="nan"):
            run(made, config, mesh)
    finally:
        jax.config.update("jax_debug_nans", False)
