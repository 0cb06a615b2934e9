"""TensorBoard, Weights & Biases and MLflow, fed with records and artifacts as they are written.

Each is imported only if `--trackers` names it. A resume continues the same tracker run. Account,
address and offline mode come from its environment variables (WANDB_MODE, MLFLOW_TRACKING_URI).
"""

import importlib
import logging
import os
import struct
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..errors import Exit, UserError
from . import store
from .telemetry import Listener, Record

log = logging.getLogger(__name__)

FLUSH_EVERY_S = 10.0
DT_STRING = 7  # of TensorFlow's types.proto
ENDINGS: dict[int, str] = {
    Exit.DONE: "FINISHED",
    Exit.PREEMPTED: "KILLED",
    Exit.INTERRUPTED: "KILLED",
}  # MLflow's
PROJECT = str(__package__).partition(".")[0]


@dataclass(frozen=True)
class Tracker:
    """A listener that sends the numbers of a record and files of DIR/artifacts."""

    send: Callable[[dict[str, float], int], None]
    artifact: Callable[[str, Path, int], None]
    close: Callable[[int], None]
    """Takes the run's exit code, so that one that failed or was stopped is shown as that."""

    def __call__(self, record: Record) -> None:
        numbers = {k: float(v) for k, v in record.items() if isinstance(v, (int, float))}
        step = int(numbers.pop("step"))
        self.send(numbers, step)


def make_trackers(
    names: Sequence[str], run_dir: Path, config: dict[str, Any], step: int = 0
) -> list[Listener]:
    """Listeners by name, going on after `step`. UserError for an unknown or uninstalled one.

    One that does not start (no network, no account) is left out with a warning.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    for name in names:
        if name not in makers:
            got, expected = f"tracker {name!r}", " ".join(makers)
            raise UserError(got=got, expected=expected, do="correct --trackers")
    trackers: list[Listener] = []
    for name in names:
        try:
            trackers.append(makers[name](run_dir, config, step))
        except ImportError as error:
            got, do = f"{name} cannot be imported: {error}", f"uv sync --extra {name}"
            raise UserError(got=got, expected=f"the extra {name!r}", do=do) from error
        except Exception as error:  # trackers raise errors of any type
            what = f"{type(error).__name__}: {error}"
            log.warning("%s did not start and gets nothing: %s; the run goes on", name, what)
    return trackers


def _tensorboard(run_dir: Path, config: dict[str, Any], step: int) -> Tracker:
    # Not SummaryWriter: on a full disk its thread dies, and the queue to it then blocks training
    # for ever. EventsWriter raises here, and the tracker is dropped.
    files = importlib.import_module("tensorboardX.event_file_writer")
    events = importlib.import_module("tensorboardX.proto.event_pb2")
    folder = run_dir / "tensorboard"
    store.make_folder(folder)
    # The file name has a resolution of seconds; two attempts may start within one.
    writer = files.EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
    # Hides what an earlier attempt logged beyond `step`.
    restart = events.SessionLog(status=events.SessionLog.START)
    writer.write_event(events.Event(wall_time=time.time(), step=step + 1, session_log=restart))
    flushed_s = 0.0

    def put(values: list[dict[str, Any]], step: int) -> None:
        nonlocal flushed_s
        summary = {"value": values}
        writer.write_event(events.Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - flushed_s > FLUSH_EVERY_S:  # each flush is an fsync
            writer.flush()
            flushed_s = time.monotonic()

    def send(numbers: dict[str, float], step: int) -> None:
        put([{"tag": name, "simple_value": number} for name, number in numbers.items()], step)

    def artifact(name: str, path: Path, step: int) -> None:
        content = store.read(path)
        if path.suffix == ".png":
            width, height = struct.unpack(">II", content[16:24])  # where every PNG has them
            size = {"width": width, "height": height, "colorspace": 3}
            put([{"tag": name, "image": size | {"encoded_image_string": content}}], step)
            return
        # TensorBoard renders Markdown, in which an indented block stands as it is written.
        text = textwrap.indent(content.decode(), "    ", lambda line: True).encode()
        tensor = {"dtype": DT_STRING, "tensor_shape": {"dim": [{"size": 1}]}, "string_val": [text]}
        metadata = {"plugin_data": {"plugin_name": "text"}}
        put([{"tag": name, "tensor": tensor, "metadata": metadata}], step)

    return Tracker(send, artifact, lambda code: writer.close())


def _wandb(run_dir: Path, config: dict[str, Any], step: int) -> Tracker:
    wandb = importlib.import_module("wandb")
    id_file = run_dir / "wandb_id"
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=store.read(id_file).decode() if store.exists(id_file) else None,
        resume="allow",  # W&B ignores steps it has seen; a resume repeats the same values
        name=run_dir.name,
        dir=str(run_dir),
        config=config,
    )
    store.write(id_file, run.id)

    def artifact(name: str, path: Path, step: int) -> None:
        if path.suffix == ".png":
            run.log({name: wandb.Image(str(path))}, step=step)
        else:
            text = escape(store.read(path).decode())
            run.log({name: wandb.Html(f"<pre>{text}</pre>")}, step=step)

    def close(code: int) -> None:
        if code == Exit.PREEMPTED:
            run.mark_preempting()  # W&B then calls a run that ends with a code "preempted"
        run.finish(exit_code=code)

    return Tracker(lambda numbers, step: run.log(numbers, step=step), artifact, close)


def _mlflow(run_dir: Path, config: dict[str, Any], step: int) -> Tracker:
    mlflow = importlib.import_module("mlflow")
    if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
        mlflow.set_experiment(PROJECT)
    id_file = run_dir / "mlflow_id"
    if store.exists(id_file):
        mlflow.start_run(run_id=store.read(id_file).decode())
    else:
        store.write(id_file, mlflow.start_run(run_name=run_dir.name).info.run_id)
        mlflow.log_params(config)  # once: MLflow refuses a parameter that changes
    return Tracker(
        lambda numbers, step: mlflow.log_metrics(numbers, step=step, synchronous=False),
        lambda name, path, step: mlflow.log_artifact(str(path), "artifacts"),
        lambda code: mlflow.end_run(ENDINGS.get(code, "FAILED")),
    )
