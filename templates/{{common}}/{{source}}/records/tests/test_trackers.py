"""Trackers continue their run after a resume; a missing one says how to install it."""

import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ...errors import Exit, UserError
from .. import artifacts
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


@pytest.fixture
def files(tmp_path):
    """A text and an image, as the recorder hands them on."""
    text = artifacts.write(tmp_path, 5, "sample", "<b>a</b>\n\n# b")
    image = artifacts.write(tmp_path, 5, "page", np.zeros((4, 6, 3), np.uint8))
    return [("sample", text, 5), ("page", image, 5)]


def test_tensorboard_keeps_scalars_and_hides_what_a_resume_repeats(tmp_path):
    for step in (0, 20):  # two attempts within one second
        (tracker,) = make_trackers(["tensorboard"], tmp_path, {}, step)
        tracker({"step": step + 10, "loss": 0.5, "bad": None, "note": "text"})
        tracker.close(Exit.DONE)
    found = events(tmp_path / "tensorboard")
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert scalars == [(10, "loss", 0.5), (30, "loss", 0.5)]
    starts = [e.step for e in found if e.HasField("session_log")]
    assert starts == [1, 21]  # TensorBoard drops events at that step and beyond
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_tensorboard_shows_text_as_it_is_and_images(tmp_path, files):
    (tracker,) = make_trackers(["tensorboard"], tmp_path, {})
    for file in files:
        tracker.artifact(*file)
    tracker.close(Exit.DONE)
    text, image = (
        (event.step, value)
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    )
    assert (text[0], text[1].tag) == (5, "sample")
    assert text[1].metadata.plugin_data.plugin_name == "text"
    assert text[1].tensor.dtype == 7  # DT_STRING
    assert [dim.size for dim in text[1].tensor.tensor_shape.dim] == [1]
    # Four spaces: a code block of Markdown, in which nothing is rendered.
    assert text[1].tensor.string_val == [b"    <b>a</b>\n    \n    # b"]
    assert (image[0], image[1].tag) == (5, "page")
    assert image[1].image.encoded_image_string == files[1][1].read_bytes()
    assert (image[1].image.height, image[1].image.width, image[1].image.colorspace) == (4, 6, 3)


def test_unknown_tracker_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"tensorbored.*\n.*tensorboard wandb mlflow"):
        make_trackers(["tensorbored"], tmp_path, {})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_extra_says_how_to_install_it(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"uv sync --extra {name}"):
        make_trackers([name], tmp_path, {})


def test_wandb_goes_on_in_its_run(tmp_path, monkeypatch, files):
    asked, logged = [], []

    def init(**options):
        asked.append(options["id"])
        log = lambda numbers, step: logged.append((step, numbers))  # noqa: E731
        return SimpleNamespace(id=options["id"] or "new", log=log, finish=lambda exit_code: None)

    image = lambda path: ("image", path)  # noqa: E731
    html = lambda text: ("html", text)  # noqa: E731
    module = SimpleNamespace(init=init, Image=image, Html=html)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for step in (5, 6):
        (tracker,) = make_trackers(["wandb"], tmp_path, {"model.width": 8})
        tracker({"step": step, "loss": 1.0})
        tracker.close(Exit.DONE)
    assert asked == [None, "new"]
    assert logged == [(5, {"loss": 1.0}), (6, {"loss": 1.0})]
    for file in files:
        tracker.artifact(*file)
    assert logged[2:] == [
        (5, {"sample": ("html", "<pre>&lt;b&gt;a&lt;/b&gt;\n\n# b</pre>")}),
        (5, {"page": ("image", str(files[1][1]))}),
    ]


def test_mlflow_goes_on_in_its_run_and_logs_parameters_once(tmp_path, monkeypatch, files):
    started, parameters, logged = [], [], []

    def start_run(run_id=None, run_name=None):
        started.append(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id="new"))

    module = SimpleNamespace(
        start_run=start_run,
        set_experiment=lambda name: None,
        log_params=parameters.append,
        log_metrics=lambda numbers, step, synchronous: None,
        log_artifact=lambda path, artifact_path: logged.append((path, artifact_path)),
        end_run=lambda status: None,
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    for _ in range(2):
        (tracker,) = make_trackers(["mlflow"], tmp_path, {"seed": 1})
    assert started == [None, "new"]
    assert parameters == [{"seed": 1}]
    for file in files:
        tracker.artifact(*file)
    assert logged == [(str(path), "artifacts") for _, path, _ in files]


@pytest.mark.parametrize(
    ("code", "wandb", "mlflow"),
    [
        (Exit.DONE, ["finish 0"], "FINISHED"),
        (Exit.PREEMPTED, ["preempting", "finish 42"], "KILLED"),
        (Exit.INTERRUPTED, ["finish 130"], "KILLED"),
        (Exit.USER, ["finish 2"], "FAILED"),
        (Exit.BUG, ["finish 1"], "FAILED"),
    ],
)
def test_a_run_that_failed_or_was_stopped_is_not_shown_as_finished(
    tmp_path, monkeypatch, code, wandb, mlflow
):
    told, ended = [], []
    run = SimpleNamespace(
        id="new",
        mark_preempting=lambda: told.append("preempting"),
        finish=lambda exit_code: told.append(f"finish {exit_code}"),
    )
    started = SimpleNamespace(info=SimpleNamespace(run_id="new"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    module = SimpleNamespace(
        set_experiment=lambda name: None,
        start_run=lambda run_name: started,
        log_params=lambda params: None,
        end_run=ended.append,
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    for tracker in make_trackers(["wandb", "mlflow", "tensorboard"], tmp_path, {}):
        tracker.close(code)
    assert told == wandb
    assert ended == [mlflow]


def test_a_tracker_that_cannot_start_is_a_warning_and_the_others_go_on(
    tmp_path, monkeypatch, caplog
):
    def init(**_):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    (tracker,) = make_trackers(["wandb", "tensorboard"], tmp_path, {})
    tracker({"step": 1, "loss": 0.5})
    tracker.close(Exit.DONE)
    assert (tmp_path / "tensorboard").exists()
    assert "wandb did not start and gets nothing: ConnectionError: no network" in caplog.text
    with pytest.raises(UserError, match="tensorbored"):  # known before any is started
        make_trackers(["wandb", "tensorbored"], tmp_path, {})
    assert caplog.text.count("did not start") == 1
