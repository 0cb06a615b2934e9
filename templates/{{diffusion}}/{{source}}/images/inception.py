"""Inception-v3 as FID uses it: images -> 2048 pooled features. Computes no FID and reads no file.

The network is TensorFlow's graph of 2015-12-05, which FID is defined on (arXiv:1706.08500), with
the tensor names that mseitzer/pytorch-fid gave it. torchvision's Inception-v3 is another: it has
other weights, counts padding in its average pools, and its last block takes averages, no maximum.

Images are resized and scaled as inside that graph. So do ADM's evaluation suite, NVIDIA's detector
(StyleGAN3, EDM, EDM2) and torch-fidelity, thus the published FIDs of diffusion models. pytorch-fid
samples at the centres of pixels instead, clean-fid with antialiasing: statistics computed by these
two do not belong beside features of this file.
"""

import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

METRIC = "FID"
FIRST = "Conv2d_1a_3x3.conv.weight"  # tells a file of this network
ORIGIN = """FID: download pt_inception-2015-12-05-6726825d.pth from the releases of
mseitzer/pytorch-fid and, where torch and safetensors are installed, run
python -c "import torch, safetensors.torch as s; s.save_file(torch.load(\
'pt_inception-2015-12-05-6726825d.pth', map_location='cpu'), 'fid.safetensors')\""""
SIZE = 299  # height and width that the network sees, pixels
NORM_EPSILON = 1e-3
PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")

# A block: branches of one input, between commas, whose outputs are concatenated. A branch: steps,
# one after the other. `name` is a convolution of stride 1 that keeps height and width, `name/s` one
# of stride s without padding; `a|b` are both of one input, concatenated. The tensors of a step are
# called by the block's name and its own; kernels and channels are those of the file.
STEM = "1a_3x3/2 2a_3x3/1 2b_3x3 max/2 3b_1x1 4a_3x3/1 max/2"
A = "1x1, 5x5_1 5x5_2, 3x3dbl_1 3x3dbl_2 3x3dbl_3, avg _pool"
B = "3x3/2, 3x3dbl_1 3x3dbl_2 3x3dbl_3/2, max/2"
C = "1x1, 7x7_1 7x7_2 7x7_3, 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5, avg _pool"
D = "3x3_1 3x3_2/2, 7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4/2, max/2"
E = "1x1, 3x3_1 3x3_2a|3x3_2b, 3x3dbl_1 3x3dbl_2 3x3dbl_3a|3x3dbl_3b"
BLOCKS = {
    "Conv2d_": STEM,
    **dict.fromkeys(("Mixed_5b.branch", "Mixed_5c.branch", "Mixed_5d.branch"), A),
    "Mixed_6a.branch": B,
    **dict.fromkeys((f"Mixed_6{letter}.branch" for letter in "bcde"), C),
    "Mixed_7a.branch": D,
    "Mixed_7b.branch": f"{E}, avg _pool",
    "Mixed_7c.branch": f"{E}, max _pool",
}

type Params = Mapping[str, Array]


def tensor_names(_: Iterable[str]) -> set[str]:
    """The names of a whole file; the classifier, `fc`, only tells whose weights they are."""
    names = {"fc.weight", "fc.bias"}
    for block, table in BLOCKS.items():
        steps = re.findall(r"\w+", re.sub(r"/\d|max|avg", "", table))
        names |= {f"{block}{step}.{part}" for step in steps for part in PARTS}
    return names


def features(params: Params, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
    """The mean over positions of the last block's output, of images in 0 ... 255.

    ValueError: the weights are torchvision's.
    """
    if (classes := len(params["fc.weight"])) != 1008:
        raise ValueError(
            f"fc.weight is of {classes} classes (torchvision: 1000), those of FID 1008"
        )
    x = (resize(images) - 128) / 128
    for block, table in BLOCKS.items():
        branches = [branch(params, block, steps, x) for steps in table.split(",")]
        x = jnp.concatenate(branches, -1)
    return x.mean((1, 2))


def resize(images: Float[Array, "B H W C"]) -> Float[Array, "B 299 299 C"]:
    """TensorFlow 1's bilinear sampling: output pixel i lies at i * size / 299, borders repeated."""

    def matrix(size: int) -> np.ndarray:
        positions = np.arange(SIZE) * size / SIZE
        columns = [np.interp(positions, np.arange(size), pixel) for pixel in np.eye(size)]
        return np.stack(columns, 1).astype(np.float32)

    _, height, width, _ = images.shape
    return jnp.einsum("yh,bhwc,xw->byxc", matrix(height), images, matrix(width))


def branch(
    params: Params, block: str, steps: str, x: Float[Array, "B H W C"]
) -> Float[Array, "B h w c"]:
    """The steps of one branch, one after the other."""
    for step in steps.split():
        x = jnp.concatenate([layer(params, block, name, x) for name in step.split("|")], -1)
    return x


def layer(
    params: Params, block: str, step: str, x: Float[Array, "B H W C"]
) -> Float[Array, "B h w c"]:
    """A pool of 3 x 3, or a convolution with its norm (of running moments) and ReLU."""
    name, _, stride = step.partition("/")
    strides = (int(stride or 1),) * 2
    padding = "VALID" if stride else "SAME"
    if name == "max":
        return nnx.max_pool(x, (3, 3), strides, padding)
    if name == "avg":
        return nnx.avg_pool(x, (3, 3), strides, padding, count_include_pad=False)
    kernel, gain, bias, mean, variance = (params[f"{block}{name}.{part}"] for part in PARTS)
    x = jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    return jax.nn.relu((x - mean) * (gain * jax.lax.rsqrt(variance + NORM_EPSILON)) + bias)
