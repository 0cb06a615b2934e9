"""Trackers go on in the run they have begun, and say how to be installed."""

import struct
import sys
from types import SimpleNamespace

import pytest

from ...errors import UserError
from ..trackers import make_trackers


def events(folder):
    """All TensorBoard events of a folder: length, its checksum, event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    return found


def test_tensorboard_keeps_scalars_and_hides_what_a_resume_repeats(tmp_path):
    for step in (0, 20):  # two attempts within one second
        (tracker,) = make_trackers(["tensorboard"], tmp_path, {}, step)
        tracker({"step": step + 10, "loss": 0.5, "bad": None, "note": "text"})
        tracker.close()
    found = events(tmp_path / "tensorboard")
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert scalars == [(10, "loss", 0.5), (30, "loss", 0.5)]
    starts = [e.step for e in found if e.HasField("session_log")]
    assert starts == [1, 21]  # TensorBoard drops events at that step and beyond
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_unknown_tracker_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"tensorbored.*\n.*tensorboard wandb mlflow"):
        make_trackers(["tensorbored"], tmp_path, {})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_extra_says_how_to_install_it(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"uv sync --extra {name}"):
        make_trackers([name], tmp_path, {})


def test_wandb_goes_on_in_its_run(tmp_path, monkeypatch):
    asked, logged = [], []

    def init(**options):
        asked.append(options["id"])
        log = lambda numbers, step: logged.append((step, numbers))  # noqa: E731
        return SimpleNamespace(id=options["id"] or "new", log=log, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for step in (5, 6):
        (tracker,) = make_trackers(["wandb"], tmp_path, {"model.width": 8})
        tracker({"step": step, "loss": 1.0})
        tracker.close()
    assert asked == [None, "new"]
    assert logged == [(5, {"loss": 1.0}), (6, {"loss": 1.0})]


def test_mlflow_goes_on_in_its_run_and_logs_parameters_once(tmp_path, monkeypatch):
    started, parameters = [], []

    def start_run(run_id=None, run_name=None):
        started.append(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id="new"))

    module = SimpleNamespace(
        start_run=start_run,
        set_experiment=lambda name: None,
        log_params=parameters.append,
        log_metrics=lambda numbers, step, synchronous: None,
        end_run=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    for _ in range(2):
        make_trackers(["mlflow"], tmp_path, {"seed": 1})
    assert started == [None, "new"]
    assert parameters == [{"seed": 1}]
