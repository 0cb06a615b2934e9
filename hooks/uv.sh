#!/bin/sh
# Acts as `uv`, from the repository root: the one on PATH, else one installed from the index into
# .venv. Needs git, make and any Python 3 with venv; the Python >= 3.12 that the tools run on is
# found here or by uv, and only when there is none does uv download one (never in CI: there
# UV_PYTHON_DOWNLOADS=never says so).
set -eu
cd "$(dirname "$0")/.."

# A command may be a pyenv shim for a version that is not there, so running it is the test.
is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null
}

find_python() {
    for candidate in python3.12 python3.13 python3.14 python3 python \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
        path=$(command -v "$candidate" 2>/dev/null) || continue
        if is_new_enough "$path"; then
            "$path" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

if command -v uv >/dev/null 2>&1; then
    uv=uv
else
    uv=.venv/bin/uv
    if [ ! -x "$uv" ]; then
        # Without a Python >= 3.12 any python3 will do: uv replaces the environment later.
        python=$(find_python) || python=python3
        echo "uv is missing: installing it into .venv with $python" >&2
        "$python" -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9.0" || {
            echo "Could not install uv. Install it yourself (docs.astral.sh/uv) or add Python's" >&2
            echo "venv and pip (on Debian: apt install python3-venv), then run this again." >&2
            exit 2
        }
    fi
    uv=$PWD/$uv
fi

# uv stops at a broken pyenv shim before it looks further; then the search above decides.
if [ -z "${UV_PYTHON:-}" ] && ! UV_PYTHON_DOWNLOADS=never "$uv" python find --quiet >/dev/null 2>&1; then
    if python=$(find_python); then
        UV_PYTHON=$python
        export UV_PYTHON
    fi
fi
exec "$uv" "$@"
