"""Test settings: eight CPU devices, and annotations of the package checked at run time."""

import os
from pathlib import Path

import beartype
import pytest
from jaxtyping import install_import_hook

# JAX reads these when it is imported; child processes inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in half the time
# Child processes compile what an earlier one has: keep the programs of a tenth of a second too.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's warnings

# Accept an int for a float, as PEP 484 does.
typecheck = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

# Check shapes and dtypes of annotations at every call, but not in the tests: a hook there would
# disable pytest's rewriting of asserts.
_folder = Path(__file__).parent
_modules = [path.relative_to(_folder).with_suffix("") for path in _folder.rglob("*.py")]
install_import_hook(
    [".".join((_folder.name, *m.parts)) for m in _modules if "tests" not in m.parts],
    f"{__name__}.typecheck",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs for the next session; `pytest --cache-clear` deletes them."""
    if hasattr(config, "cache"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
