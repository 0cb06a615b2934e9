"""Features of images by a network whose weights the user supplies: that of FID or of FD-DINOv2.

Downloads nothing and knows no distance. The networks are inception.py and dinov2.py.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..errors import UserError
from . import dinov2, inception

NETWORKS = (inception, dinov2)
# Parts of a state dict that no feature depends on.
UNUSED = ("num_batches_tracked", "embeddings.mask_token")

type Images = UInt8[np.ndarray | Array, "B H W C"] | Float[np.ndarray | Array, "B H W C"]


@dataclass(frozen=True)
class FeatureNet:
    """A network and its weights, on this process's first device. Call it: images -> features."""

    metric: str  # what the Fréchet distance of such features is called
    network: Callable[..., Array]
    params: Mapping[str, Array]
    batch_size: int

    def __call__(self, images: Images) -> Float[np.ndarray, "B D"]:
        """Features of uint8 images in 0 ... 255, or of floats in [-1, 1], grey or in colour.

        Floats are rounded to 8 bits: published numbers are those of image files. One program is
        compiled for a height, width, number of channels and dtype; the last batch is padded.
        """
        if images.shape[-1] not in (1, 3):
            raise UserError(
                got=f"{images.shape[-1]} channels, for {self.metric}",
                expected="images of 1 or 3 channels",
                do="decode latents to images first",
            )
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = np.asarray(images[start : start + self.batch_size])
            rows = [(0, self.batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            # Waiting for each batch keeps those to come off the device.
            part = np.asarray(run(self.network, self.params, np.pad(batch, rows)))
            parts.append(part[: len(batch)])
        return np.concatenate(parts)


@partial(jax.jit, static_argnames="network")
def run(
    network: Callable[..., Array], params: Mapping[str, Array], images: Images
) -> Float[Array, "B D"]:
    """One batch through the network, in float32 throughout."""
    x = images.astype(jnp.float32)
    if images.dtype != jnp.uint8:
        x = jnp.round((x + 1) * 127.5).clip(0, 255)
    # By default GPUs would multiply in TF32 and TPUs in bfloat16.
    with jax.default_matmul_precision("highest"):
        return network(params, jnp.broadcast_to(x, (*x.shape[:3], 3)))


def open_features(path: str | Path, batch_size: int = 64) -> FeatureNet:
    """The network of a `.safetensors` file, told by the names and shapes of its tensors.

    batch_size: images on the device at once. UserError: the file cannot be read, is of no network
    known here, or has tensors missing, of another network or of shapes that do not fit.
    """
    unusable = partial(
        UserError,
        expected="the tensors of " + " or ".join(f"{n.METRIC} ({n.FIRST}, ...)" for n in NETWORKS),
        do="\n".join(network.ORIGIN for network in NETWORKS),
    )
    try:
        tensors = {n: x for n, x in load_file(path).items() if not n.endswith(UNUSED)}
    except (OSError, SafetensorError) as error:
        raise unusable(got=f"{path}: {error}") from error
    network = next((network for network in NETWORKS if network.FIRST in tensors), None)
    if network is None:
        raise unusable(got=f"{path} with {first_of(tensors)}")
    names = network.tensor_names(tensors)
    if missing := names - tensors.keys():
        raise unusable(got=f"{path}, like {network.METRIC} but without {first_of(missing)}")
    if foreign := tensors.keys() - names:
        raise unusable(got=f"{path}, like {network.METRIC} but with {first_of(foreign)}")
    try:
        jax.eval_shape(network.features, tensors, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    except (TypeError, ValueError) as error:
        raise unusable(got=f"{path}, like {network.METRIC} but: {error}") from error
    return FeatureNet(network.METRIC, network.features, jax.device_put(tensors), batch_size)


def first_of(names: Collection[str]) -> str:
    """Some names, and how many there are."""
    return f"{', '.join(sorted(names)[:4])} ({len(names)} in all)"
