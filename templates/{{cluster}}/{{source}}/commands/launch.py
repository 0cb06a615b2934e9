"""`launch`: the job as a cluster takes it, and the commands that send it. Runs no job itself."""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..cluster.job import read_job
from ..cluster.rendered import render
from ..cluster.targets import check_filled, check_target
from ..errors import Exit, UserError
from ..records import store

type Target = Literal["gke", "slurm", "queued", "skypilot", "local"]


def launch(
    *,
    target: Annotated[Target, tyro.conf.Positional] = "gke",
    job: Path = Path("launch/job.toml"),
    out: Path | None = None,
    apply: bool = False,
    dry_run: bool = False,
) -> int:
    """Render the job for a cluster, check it, and print it and the commands that would send it.

    Args:
        target: gke (a JobSet), slurm (sbatch), queued (TPU VMs), skypilot, or local: this machine
        job: the job file
        out: where the rendered file goes; without it, to build/launch with --apply alone
        apply: run exactly the commands that are printed
        dry_run: run nothing, which is what happens without --apply too
    """
    if apply and dry_run:
        raise UserError(got="--apply --dry-run", expected="one of them", do="leave one out")
    found = read_job(job)
    if target != "local":
        check_target(found, target)
        if apply:
            check_filled(found)
    rendered = render(found, target, job, out)
    if rendered.text:
        print(rendered.text)
    for note in rendered.notes:
        print(f"# {note}")
    if rendered.text and (apply or out):
        store.write(rendered.path, rendered.text)
        print(f"# written: {rendered.path}")
    print("# run:" if apply else "# --apply runs:", flush=True)
    for argv in rendered.commands:
        print(shlex.join(argv), flush=True)
        if apply:
            _run(argv)
    return Exit.DONE


def _run(argv: list[str]) -> None:
    """Run a command as it is printed, without a shell; UserError where it fails."""
    if shutil.which(argv[0]) is None:
        raise UserError(
            got=f"no command {argv[0]}",
            expected=f"{argv[0]} on PATH, logged in to your cluster",
            do="install it; or render with --out FILE, and run the printed commands elsewhere",
        )
    if code := subprocess.run(argv).returncode:
        raise UserError(
            got=f"{shlex.join(argv)} ended with {code}",
            expected="0",
            do="read what it says above; nothing after it was run",
        )
