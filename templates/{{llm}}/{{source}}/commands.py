"""The commands of this project: what each takes from the command line, and where its work is done.

A command with a `config` takes a preset's name first, then overrides of single fields. Imports no
JAX: every command imports what it needs when it is called.
"""

import os
from collections.abc import Callable
from typing import Annotated

import tyro

from .config import PRESETS, Config, validate
from .errors import Exit

type Settings = Annotated[Config, tyro.conf.arg(name="")]

__all__ = ["COMMANDS", "PRESETS"]


def train(*, config: Settings) -> int:
    """Train, or go on with the run that stands in --run-dir."""
    from .distributed import start_processes
    from .host_memory import keep_freed_memory
    from .loop import run
    from .sharding import make_mesh
    from .workload import make_workload

    config = validate(config)
    keep_freed_memory()
    start_processes()
    mesh = make_mesh(config.mesh)
    return run(make_workload(config, mesh), config, mesh)


def prepare(*, config: Settings) -> int:
    """Turn text into token shards; `train` does it too where they are missing."""
    from .prepare import describe, prepare

    print(describe(prepare(config.data)))
    return Exit.DONE


def sample(
    *,
    run_dir: str = "runs/demo",
    prompt: str = "",
    chars: int = 300,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> int:
    """Write text from the newest checkpoint; with no prompt, from the start of a document."""
    from .sample import sample

    sample(run_dir, prompt=prompt, chars=chars, temperature=temperature, top_p=top_p, seed=seed)
    return Exit.DONE


def evaluate(*, run_dir: str = "runs/demo") -> int:
    """Exact held-out bits per byte of the newest checkpoint, beside gzip and xz."""
    import jax

    from .distributed import start_processes
    from .evaluate import bits_per_byte
    from .host_memory import keep_freed_memory
    from .report import format_summary
    from .shards import open_split, read_manifest
    from .trained import open_run

    keep_freed_memory()
    start_processes()
    run = open_run(run_dir)
    folder = run.learner.config.data.prepared_dir
    text, heldout = read_manifest(folder), open_split(folder, "heldout")
    with jax.set_mesh(run.mesh):
        found = bits_per_byte(run.learner, run.params, heldout, run.mesh)
    origin = {"corpus_sha256": text.corpus_sha256, "corpus_python": text.python}
    print(format_summary({"step": run.step} | found | origin))
    return Exit.DONE


def export(*, to: str, run_dir: str = "runs/demo") -> int:
    """Write the newest checkpoint for other tools: a Qwen3 or Llama folder of the Hub."""
    from .export import export

    export(run_dir, to)
    return Exit.DONE


def preflight(*, config: Settings, topology: str = "local") -> int:
    """Compile the real step for a TPU topology (v5e:2x2, v6e:2x4) or these devices: does it fit?"""
    if topology != "local":
        # Read when JAX is imported: look for no TPU, load libtpu beside other processes, be quiet.
        os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
        os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3"}
        os.environ |= {"TPU_MIN_LOG_LEVEL": "3", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
        os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost"}
    from .preflight import preflight

    return Exit.DONE if preflight(validate(config), topology) else Exit.USER


def bench(*, config: Settings, timed_steps: int = 20) -> int:
    """Time the bare step, the loop around it and the input on these devices."""
    from .bench import bench
    from .host_memory import keep_freed_memory

    keep_freed_memory()
    bench(validate(config), timed_steps)
    return Exit.DONE


def doctor() -> int:
    """Say what this environment is, and what is wrong with it."""
    from .doctor import doctor

    return doctor([])


def template_status() -> int:
    """Say how far the template is ahead of this project, and what the last update brought."""
    from .template_status import template_status

    return template_status([])


COMMANDS: dict[str, Callable[..., int]] = {
    "train": train,
    "prepare": prepare,
    "sample": sample,
    "evaluate": evaluate,
    "export": export,
    "preflight": preflight,
    "bench": bench,
    "doctor": doctor,
    "template-status": template_status,
}
