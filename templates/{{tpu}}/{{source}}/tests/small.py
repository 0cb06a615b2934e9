"""The smallest job: its settings, as an object and as options."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import Config, DataConfig, ModelConfig
from ..run_config import RunConfig
from ..training.optim_config import OptimConfig

CONFIG = Config(
    model=ModelConfig(layers=2, width=32, heads=4),
    optim=OptimConfig(learning_rate=1e-2, horizon_steps=100, warmup_steps=2, micro_batches=2),
    data=DataConfig(seq_len=32, batch_size=16, heldout_fraction=0.2, eval_rows=20),
)
# Of settings that a workload of your own may not have: take them out with its own.
MODEL = "--model.layers 2 --model.width 16 --model.heads 2 --data.seq-len 16 --data.eval-rows 5"
MODEL += " --model.compute-dtype float32"
JOB = f"train {MODEL} --data.batch-size 12 --data.heldout-fraction 0.2 --optim.horizon-steps 200"
JOB += " --log-every-steps 1 --eval-every-steps 0 --trackers tensorboard"


def write_text(folder: Path) -> str:
    """A few kilobytes in files; a glob that finds them."""
    for i in range(20):
        (folder / f"{i}.txt").write_text("".join(f"line {n} of {i}\n" for n in range(i + 8)))
    return str(folder / "*.txt")


def with_text(folder: Path, **run: Any) -> Config:
    """On a text that is written to the folder; `run` are fields of its RunConfig."""
    settings = RunConfig(run_dir=str(folder / "run"), trackers=(), **run)
    return replace(CONFIG, run=settings, data=replace(CONFIG.data, paths=(write_text(folder),)))
