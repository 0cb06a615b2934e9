#!/bin/sh
# On a machine without a package index: install the wheels of build/gpu, then run gpu.py.
# The same command again, on the same machine, adds rounds and finds its programs compiled.
set -eu
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1
SITE=${SITE:-build/site}
[ -e "$SITE/done" ] || { python3 benchmarks/wheels.py --install "$SITE" && touch "$SITE/done"; }
PYTHONPATH=$PWD/$SITE exec python3 benchmarks/gpu.py "$@"
