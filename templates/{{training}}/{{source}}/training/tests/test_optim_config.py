"""Settings that no training can have are refused, and the schedule ends with the run."""

from dataclasses import dataclass, field, replace

import pytest

from ...errors import UserError
from ...run_config import MeshConfig, RunConfig, from_dict, setting
from ..optim_config import OptimConfig, validate_training


@dataclass(frozen=True)
class Data:
    batch_size: int = 8
    classes: int = setting(0, least=0)
    flip: bool = False


@dataclass(frozen=True)
class Settings:
    run: RunConfig = field(default_factory=RunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: Data = field(default_factory=Data)


def test_the_schedule_ends_with_the_run_unless_told_otherwise() -> None:
    config = replace(Settings(), run=RunConfig(steps=70))
    filled = replace(config, optim=OptimConfig(horizon_steps=70))
    assert validate_training(config) == filled
    told = replace(config, optim=OptimConfig(horizon_steps=50))
    assert validate_training(told) == told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run.log_every_steps": 0}, r"--log-every-steps 0.*at least 1"),
        ({"run.eval_every_steps": -5}, r"--eval-every-steps -5.*at least 0"),
        ({"run.prefetch_workers": 0}, r"--prefetch-workers 0.*at least 1"),
        ({"optim.micro_batches": -1}, r"--optim.micro-batches -1.*at least 1"),
        ({"mesh.data": -2}, r"--mesh.data -2.*at least -1"),
        ({"data.classes": -1}, r"--data.classes -1.*at least 0"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)got: .*{words}"):
        validate_training(from_dict(Settings(), changes))
