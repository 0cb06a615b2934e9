"""A job as an sbatch script. Submits nothing.

- SIGTERM reaches the tasks, not this script: with `B:` it would have to be passed on through srun,
  which then kills the tasks at once.
- srun ends with the highest code of its tasks. It must not end the others when one fails, since
  processes of a run tell each other and end by themselves, the coordinator last.
- A task that is frozen would hold all nodes for ever: 600 s after the first one has ended, srun
  ends the others.
- A job that is taken away ends with 42 within its grace time, and is then over for Slurm; so the
  script puts it back, as it does after a fault. Slurm itself puts it back when a node fails.
- SLURM_RESTART_COUNT counts preemptions too. Faults are counted in a file beside the log.
- A requeued job waits for about two minutes; that is Slurm's.
"""

import shlex

from ..errors import Exit
from .job import FAULTS, Job, process

LOGS = "build/launch"  # must be there when the job is submitted


def sbatch(job: Job) -> str:
    """The script, equal for equal jobs. It is submitted in the folder of the project."""
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.hosts * job.slices}",
        "--ntasks-per-node=1",  # one process drives all devices of a host
        "--exclusive",
        "--mem=0",  # all of a node's
        *([] if job.accelerator == "cpu" else [f"--gpus-per-node={job.slice.chips_per_host}"]),
        *([f"--partition={job.queue}"] if job.queue else []),
        *([f"--qos={job.priority}"] if job.priority else []),
        *([f"--reservation={job.reservation}"] if job.reservation else []),
        *([f"--time={job.limit_min}"] if job.limit_min else []),
        f"--signal=TERM@{job.grace_s}",
        "--requeue",
        "--open-mode=append",  # one log over all attempts
        f"--output={LOGS}/%x-%j.log",
    ]
    env = "".join(f"export {name}={shlex.quote(v)}\n" for name, v in job.environ.items())
    faults = " | ".join(str(int(code)) for code in FAULTS)
    return f"""#!/usr/bin/env bash
{"".join(f"#SBATCH {option}{chr(10)}" for option in options)}
set -u
{env}code=0
srun --kill-on-bad-exit=0 --wait=600 --cpu-bind=none {process(job)} || code=$?

faults_file="{LOGS}/$SLURM_JOB_NAME-$SLURM_JOB_ID.faults"
faults=0
if [ -s "$faults_file" ]; then faults=$(cat "$faults_file"); fi
case $code in
{int(Exit.PREEMPTED)}) again=yes ;;
{faults})
  again=no
  if [ "$faults" -lt {job.retries} ]; then again=yes; fi
  echo $((faults + 1)) >"$faults_file"
  ;;
*) again=no ;;
esac
echo "$SLURM_JOB_NAME: ended with $code, faults before: $faults of {job.retries}, again: $again"
if [ "$again" = yes ] && scontrol requeue "$SLURM_JOB_ID"; then
  sleep 60 # Slurm ends this script; to end by itself now would be the end of the job
fi
exit "$code"
"""
