"""A field says what it may be and what a resume may do with it."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from ..errors import UserError
from ..run_config import (
    MeshConfig,
    RunConfig,
    check_settings,
    from_dict,
    identity,
    identity_of,
    option,
    setting,
    to_dict,
    tunable,
    tunables_of,
)

type Shape = Literal["round", "square"]


@dataclass(frozen=True)
class Part:
    shape: Shape = identity("round")  # noqa: RUF009
    size: float = tunable(2.0)
    share: float = setting(0.5, least=0, most=1)
    count: int = 3
    flip: bool = False
    paths: tuple[str, ...] = ()
    name: str = "x"
    # As a user may write them: no marks, any value of the type.
    offset: float = -1.0
    dropout: float = 0.0
    at_most: int | None = None
    layers: tuple[int, ...] | None = (0, 2)
    mode: Literal["a", 1] = "a"
    ratio: float = identity(0.0)
    anything: Any = 3
    pair: tuple[int, str] = (1, "a")


@dataclass(frozen=True)
class Settings:
    run: RunConfig = field(default_factory=RunConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    part: Part = field(default_factory=Part)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("run.log_every_steps", 0, "--log-every-steps 0.*more than 0"),
        ("run.eval_every_steps", -5, "--eval-every-steps -5.*at least 0"),
        ("run.prefetch_workers", 0, "--prefetch-workers 0.*more than 0"),
        ("run.run_dir", "", "--run-dir .*a folder of a mounted file system"),
        ("run.run_dir", "hdfs://host/run", "--run-dir hdfs://host/run.*gs://BUCKET/FOLDER"),
        ("run.run_dir", "gs:/bucket/run", "--run-dir gs:/bucket/run.*gs://BUCKET/FOLDER"),
        ("run.run_dir", "s3://bucket", "--run-dir s3://bucket.*s3://BUCKET/FOLDER"),
        ("run.run_dir", "s3://bucket/run*", r"--run-dir s3://bucket/run\*.*without .*\*"),
        ("run.run_dir", "gs://bucket/lr[1]", r"--run-dir gs://bucket/lr\[1\].*without .*\["),
        ("run.run_dir", "gs://bucket//run", "--run-dir gs://bucket//run.*without //"),
        ("run.seed", -1, "--seed -1.*at least 0"),
        ("run.seed", 2**32, f"--seed {2**32}.*at most {2**32 - 1}"),
        ("run.hang_timeout_s", -1.0, "--hang-timeout-s -1.0.*at least 0"),
        ("mesh.data", -2, "--mesh.data -2.*at least -1"),
        ("part.size", 0.0, "--part.size 0.0.*more than 0"),
        ("part.size", math.inf, "--part.size inf.*a finite number"),
        ("part.size", "big", "--part.size big.*type float"),
        ("part.size", None, "--part.size None.*type float"),
        ("part.share", 1.5, "--part.share 1.5.*at most 1"),
        ("part.count", 2.0, "--part.count 2.0.*type int"),
        ("part.count", True, "--part.count.*type int"),
        ("part.count", math.inf, "--part.count inf.*type int"),
        ("part.flip", 1, "--part.flip 1.*type bool"),
        ("part.at_most", "3", r"--part.at-most 3.*type int \| None"),
        ("part.at_most", True, r"--part.at-most.*type int \| None"),
        ("part.layers", (0, "2"), r"--part.layers 0 2.*type tuple\[int, \.\.\.\] \| None"),
        ("part.mode", 2, "--part.mode 2.*one of a, 1"),
        ("part.pair", (1,), r"--part.pair 1.*type tuple\[int, str\]"),
        ("part.ratio", math.nan, "--part.ratio nan.*a finite number"),
        ("part.anything", Path("x"), "--part.anything x.*config.json"),
        ("part.paths", "a", r"--part.paths a.*type tuple\[str"),
        ("part.shape", "oval", "--part.shape oval.*one of round, square"),
        ("part.name", 3, "--part.name 3.*type str"),
    ],
)
def test_a_value_that_its_field_does_not_take(name: str, value: object, words: str) -> None:
    room, last = name.split(".")
    config = replace(Settings(), **{room: replace(getattr(Settings(), room), **{last: value})})
    with pytest.raises(UserError, match=f"(?s)got: .*{words}"):
        check_settings(config)


def test_values_at_their_bounds_are_taken() -> None:
    part = Part(shape="square", size=1e-9, share=0.0, count=1, flip=True, paths=("a",))
    free = Part(offset=0.0, dropout=-2, at_most=0, layers=None, mode=1, ratio=-1.0, anything=None)
    more = (free, replace(part, share=1, size=3))
    for found in (Settings(), Settings(part=part), *(Settings(part=each) for each in more)):
        assert check_settings(found) is found


def test_what_a_resume_may_change() -> None:
    assert identity_of(Settings()) == {"run.seed": 0, "part.shape": "round", "part.ratio": 0.0}
    assert tunables_of(Settings()) == {"run.steps": 1000, "part.size": 2.0}


def test_a_configuration_is_read_back_as_it_was_written() -> None:
    part = Part(paths=("a", "b"), layers=None, at_most=3)
    for config in (Settings(part=part, run=RunConfig(steps=7, trackers=())), Settings()):
        assert from_dict(Settings(), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("value", ["wandb", None])
def test_a_file_that_has_no_list_where_one_belongs(value: object) -> None:
    with pytest.raises(UserError, match=rf"--part.paths {value}\n.*type tuple\[str, "):
        check_settings(from_dict(Settings(), {"part.paths": value}))


def test_an_option_with_several_values() -> None:
    assert option("run.trackers", ["wandb", "mlflow"]) == "--trackers wandb mlflow"
