"""A job on TPU VMs, as a bash script that asks for queued resources. Asks for nothing itself.

The script stays in the foreground of a machine of yours, best in tmux: it asks for the slices,
waits, asks again when they are taken away, and deletes them at the end. What runs on the hosts is
the startup script inside it. Hosts of a run end together and with one code, so each starts again by
itself; the first one leaves the last code in the bucket, where the script finds it. If that one is
frozen, another one leaves its own ten minutes later, since slices that nobody ends are paid for.
"""

import shlex

from ..errors import Exit
from .job import FAULTS, Job

# Software of the VM, docs.cloud.google.com/tpu/docs/runtimes (read 2026-08); JAX is in the image.
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
POLL_S = 60


def queued(job: Job) -> str:
    """The script, equal for equal jobs; it ends with the exit code of the run."""
    gcloud, options = _request(job)
    where = f"--zone={job.zone}" + (f" --project={job.project}" if job.project else "")
    return f"""#!/usr/bin/env bash
# Needs gcloud, and the rights to make TPU VMs and to read {job.run_dir}.
set -euo pipefail
where=({where})
ended={shlex.quote(f"{job.run_dir.rstrip('/')}.ended")}/$(date +%s)-$$
startup=$(mktemp)
made=no
create() {{
  {gcloud} compute tpus queued-resources create {job.name} "${{where[@]}}" \\
    {" ".join(map(shlex.quote, options))} \\
    --metadata-from-file="startup-script=$startup"
}}
delete() {{
  if [ $made = no ]; then return; fi # one of this name may be of another script
  gcloud compute tpus queued-resources delete {job.name} "${{where[@]}}" --force --quiet
}}
trap 'delete || true; rm -f "$startup"' EXIT # a slice that is left behind costs
trap 'exit {int(Exit.INTERRUPTED)}' INT TERM
printf '#!/usr/bin/env bash\\nended=%q\\n' "$ended" >"$startup"
cat >>"$startup" <<'STARTUP'
{_startup(job)}STARTUP

create
made=yes
while true; do
  while true; do
    sleep {POLL_S}
    if code=$(gcloud storage cat "$ended" 2>/dev/null); then exit "$code"; fi
    state=$(gcloud compute tpus queued-resources describe {job.name} "${{where[@]}}" \\
      --format='value(state.state)' || echo unknown)
    echo "$(date) {job.name}: $state"
    case $state in
    SUSPENDING | SUSPENDED) break ;; # taken away
    FAILED)
      echo "{job.name}: no such capacity; the reason is above or in the console" >&2
      exit {int(Exit.BUG)}
      ;;
    esac
  done
  until delete; do sleep {POLL_S}; done
  until create; do sleep {POLL_S}; done
done
"""


def _request(job: Job) -> tuple[str, list[str]]:
    """The gcloud that takes a request for this hardware, and the options of it."""
    nodes = f"--node-id={job.name}"
    if job.slices > 1:
        nodes = f"--node-count={job.slices} --node-prefix={job.name}"
    hardware = f"--accelerator-type={job.slice.api_type}"
    if job.topology.count("x") == 2:  # as many chips have several shapes
        hardware = f"--type={job.slice.api_type.partition('-')[0]} --topology={job.topology}"
    capacity, gcloud = "--spot" if job.spot else "", "gcloud"
    if job.reservation:  # its name is a flag of alpha alone: tpu/docs/consume-reservation there
        capacity, gcloud = f"--reservation={job.reservation}", "gcloud alpha"
    return gcloud, [
        *nodes.split(),
        *hardware.split(),
        f"--runtime-version={RUNTIMES[job.accelerator]}",
        "--scopes=cloud-platform",  # to read the image, and to read and write the bucket
        *capacity.split(),
        *([f"--service-account={job.service_account}"] if job.service_account else []),
    ]


def _startup(job: Job) -> str:
    """What each host runs as root when it starts, and again when it was repaired."""
    registry = job.image.split("/")[0]
    env = " ".join(f"--env={shlex.quote(f'{k}={v}')}" for k, v in job.environ.items())
    faults = " | ".join(str(int(code)) for code in FAULTS)
    return f"""set -u
gcloud auth configure-docker {registry} --quiet
devices=()
for device in /dev/accel* /dev/vfio/*; do
  if [ -e "$device" ]; then devices+=("--device=$device"); fi
done
faults=0
while true; do
  code=0
  # The network of the VM: libtpu asks its metadata server and talks to the other hosts by it.
  # Its memory too: copies of the state there outlive a container.
  docker run --rm --name=main --network=host --user=root --ulimit=memlock=-1 \\
    --volume=/dev/shm:/dev/shm --stop-timeout={job.grace_s} "${{devices[@]}}" {env} \\
    {job.image} {shlex.join(job.arguments)} || code=$?
  case $code in
  {int(Exit.PREEMPTED)}) ;;
  125 | {faults}) # 125 is of docker: an image that cannot be pulled yet
    faults=$((faults + 1))
    if [ "$faults" -gt {job.retries} ]; then break; fi
    ;;
  *) break ;;
  esac
  sleep 10 # until the other hosts have ended too
done
place=$(curl --silent --header 'Metadata-Flavor: Google' \\
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
if [ "$place" != 0 ]; then
  sleep 600
  if gcloud storage cat "$ended" >/dev/null 2>&1; then exit; fi
fi
echo "$code" | gcloud storage cp - "$ended"
"""
