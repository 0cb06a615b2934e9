"""The dtype of matrix products, and a product that accumulates and returns float32."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def compute_dtype(choice: str, platform: str | None = None) -> jnp.dtype:
    """The dtype of matrix products; masters, norms, softmax and loss stay float32.

    "auto" is float32 on a CPU, else bfloat16. platform: of JAX, None = the one here.
    """
    on_cpu = (platform or jax.default_backend()) == "cpu"
    return jnp.dtype(("float32" if on_cpu else "bfloat16") if choice == "auto" else choice)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(
    formula: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`einsum` to float32; its gradient is first rounded to the operands' dtype.

    Otherwise JAX multiplies the float32 gradient with a bfloat16 operand in float32, which made
    the logits' backward pass 2.3 times slower on a GB200 (marin-community/marin#8368).
    """
    return jnp.einsum(formula, left, right, preferred_element_type=jnp.float32)


def _forward(formula: str, left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(formula, left, right), (left, right)


def _backward(formula: str, operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    left, right = operands
    rounded = gradient.astype(left.dtype)
    (to_left,) = jax.linear_transpose(lambda x: jnp.einsum(formula, x, right), left)(rounded)
    (to_right,) = jax.linear_transpose(partial(jnp.einsum, formula, left), right)(rounded)
    return to_left, to_right


product.defvjp(_forward, _backward)
