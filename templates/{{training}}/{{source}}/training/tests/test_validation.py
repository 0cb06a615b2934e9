"""Settings that no training can have are refused, and the schedule ends with the run."""

from dataclasses import dataclass, field, replace

import pytest

from ...errors import UserError
from ...run_config import MeshConfig, RunConfig, from_dict
from ..optim_config import OptimConfig
from ..validation import validate_training


@dataclass(frozen=True)
class Data:
    batch_size: int = 8
    classes: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Settings:
    run: RunConfig = field(default_factory=RunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: Data = field(default_factory=Data)


ZEROS = frozenset({"data.classes"})


def test_the_schedule_ends_with_the_run_unless_told_otherwise() -> None:
    config = replace(Settings(), run=RunConfig(steps=70))
    filled = replace(config, optim=OptimConfig(horizon_steps=70))
    assert validate_training(config, ZEROS) == filled
    told = replace(config, optim=OptimConfig(horizon_steps=50))
    assert validate_training(told, ZEROS) == told


@pytest.mark.parametrize(
    ("changes", "may_be_zero", "words"),
    [
        ({"run.log_every_steps": 0}, ZEROS, r"--log-every-steps 0.*at least 1"),
        ({"optim.micro_batches": -1}, ZEROS, r"--optim.micro-batches -1.*at least 1"),
        ({"optim.micro_batches": 3}, ZEROS, r"batch-size 8 .*micro-batches 3.*divide"),
        ({}, frozenset(), r"--data.classes 0.*at least 1"),
    ],
)
def test_settings_that_do_not_fit(
    changes: dict[str, object], may_be_zero: frozenset[str], words: str
) -> None:
    with pytest.raises(UserError, match=rf"(?s)got: .*{words}"):
        validate_training(from_dict(Settings(), changes), may_be_zero)
