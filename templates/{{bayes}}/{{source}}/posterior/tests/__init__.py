"""JAX is loaded before ArviZ, whose lazy import of it is incomplete under the hook of our tests."""

import jax  # noqa: F401
