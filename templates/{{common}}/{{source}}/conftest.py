"""Tests run on eight devices made of the CPU, and the annotations of the package are checked."""

import os
from pathlib import Path

import beartype
import pytest
from jaxtyping import install_import_hook

# JAX reads these when it is imported; child processes inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in half the time
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's warnings

# As Python's typing has it, an int will do where a float is asked for.
typecheck = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

# Shapes and dtypes of annotations hold at every call. Only the package's own modules: a hook on the
# tests would take pytest's rewriting of their asserts away.
_folder = Path(__file__).parent
_modules = [path.relative_to(_folder).with_suffix("") for path in _folder.rglob("*.py")]
install_import_hook(
    [".".join((_folder.name, *m.parts)) for m in _modules if "tests" not in m.parts],
    f"{__name__}.typecheck",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep what takes long to compile for the next session; `pytest --cache-clear` forgets it."""
    if hasattr(config, "cache"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
