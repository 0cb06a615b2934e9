"""The schedule ends with the run, and settings that no training can have are refused."""

import math

import pytest

from ...errors import UserError
from ...run_config import check_settings
from ..optim_config import OptimConfig, fit_schedule


def test_the_schedule_ends_with_the_run_unless_told_otherwise() -> None:
    assert fit_schedule(OptimConfig(warmup_steps=20), 70) == OptimConfig(
        horizon_steps=70, warmup_steps=20
    )
    told = OptimConfig(horizon_steps=50, warmup_steps=40)
    assert fit_schedule(told, 70) == told


@pytest.mark.parametrize(("steps", "warmup"), [(40, 20), (39, 19), (5, 2), (1, 0)])
def test_a_short_run_is_warmed_up_for_half_of_it_at_most(steps: int, warmup: int) -> None:
    assert fit_schedule(OptimConfig(warmup_steps=20), steps).warmup_steps == warmup


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("micro_batches", -1, "more than 0"),
        ("clip_norm", -1.0, "at least 0"),  # would train uphill
        ("learning_rate", math.nan, "a finite number"),
        ("learning_rate", -0.1, "at least 0"),
        ("beta1", 1.0, "at most 0.999999"),
        ("beta2", 1.5, "at most 0.999999"),
        ("cooldown_fraction", 1.5, "at most 1"),
    ],
)
def test_settings_that_no_training_can_have(name: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=f"(?s)got: .*{name.replace('_', '-')}.*expected: {words}"):
        check_settings(OptimConfig(**{name: value}))
