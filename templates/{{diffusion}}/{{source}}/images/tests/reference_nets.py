"""The networks of FID and FD-DINOv2 written out in NumPy, for test_feature_nets.py."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.special import erf

type Weights = dict[str, np.ndarray]

WIDTH, PATCH, GRID = 128, 56, 5  # two heads; 4 x 4 patches where the file has positions for 5 x 5
# torch 2.14.1: interpolate(x, scale_factor=4.1 / 5, mode="bicubic") of five pixels, as a matrix.
TORCH_BICUBIC = np.array(
    [
        [0.909309, 0.098734, -0.008043, 0.0, 0.0],
        [-0.111099, 0.800683, 0.364955, -0.054539, 0.0],
        [0.0, -0.083798, 0.528978, 0.656737, -0.101917],
        [0.0, 0.0, -0.030936, 0.238763, 0.792173],
    ]
)


def vit_weights() -> Weights:
    """A Transformer of two layers as `Dinov2Model.save_pretrained` writes it."""
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + GRID**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for layer in ("encoder.layer.0.", "encoder.layer.1."):
        for name, width_in, width_out in (
            ("attention.attention.query", WIDTH, WIDTH),
            ("attention.attention.key", WIDTH, WIDTH),
            ("attention.attention.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("mlp.fc1", WIDTH, 96),
            ("mlp.fc2", 96, WIDTH),
        ):
            shapes[f"{layer}{name}.weight"] = (width_out, width_in)
            shapes[f"{layer}{name}.bias"] = (width_out,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[layer + name] = (WIDTH,)
        shapes |= {f"{layer}layer_scale{i}.lambda1": (WIDTH,) for i in (1, 2)}
    rng = np.random.default_rng(1)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        # Of matrices such that a unit input gives a unit output, and sharp attention.
        std = 1.5 / math.sqrt(math.prod(shape[1:])) if len(shape) in (2, 4) else 0.5
        return rng.normal(0, std, shape).astype(np.float32)

    return {name: draw(shape) for name, shape in shapes.items()}


def vit_reference(w: Weights, images: np.ndarray) -> np.ndarray:
    """Transformers' modeling_dinov2.py with the positions of facebookresearch/dinov2; float64."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return np.einsum("ti,oi->to", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def features(image: np.ndarray) -> np.ndarray:
        channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
        resized = [np.asarray(c.resize((224, 224), Image.Resampling.BICUBIC)) for c in channels]
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        x = (np.stack(resized, -1) / 255 - mean) / std
        projection = "embeddings.patch_embeddings.projection"
        tokens = [w["embeddings.cls_token"][0, 0] + w["embeddings.position_embeddings"][0, 0]]
        table = w["embeddings.position_embeddings"][0, 1:].reshape(GRID, GRID, WIDTH)
        table = np.einsum("yi,xj,ijd->yxd", TORCH_BICUBIC, TORCH_BICUBIC, table)
        for row in range(4):
            for column in range(4):
                patch = x[PATCH * row :, PATCH * column :][:PATCH, :PATCH]
                token = np.einsum("hwc,dchw->d", patch, w[f"{projection}.weight"])
                tokens.append(token + w[f"{projection}.bias"] + table[row, column])
        x = np.stack(tokens)
        for layer in ("encoder.layer.0.", "encoder.layer.1."):
            h = norm(x, f"{layer}norm1")
            q, k, v = (
                linear(h, f"{layer}attention.attention.{n}") for n in ("query", "key", "value")
            )
            heads = []
            for i in (0, 64):
                scores = np.exp(q[:, i : i + 64] @ k[:, i : i + 64].T / 8)
                heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, i : i + 64])
            h = linear(np.concatenate(heads, -1), f"{layer}attention.output.dense")
            x = x + h * w[f"{layer}layer_scale1.lambda1"]
            h = linear(norm(x, f"{layer}norm2"), f"{layer}mlp.fc1")
            h = linear(h * (1 + erf(h / math.sqrt(2))) / 2, f"{layer}mlp.fc2")
            x = x + h * w[f"{layer}layer_scale2.lambda1"]
        return norm(x[0], "layernorm")

    return np.stack([features(image) for image in images])


class InceptionReference:
    """torchvision's inception.py with the patches of pytorch-fid, on one image; draws weights."""

    def __init__(self, image: np.ndarray) -> None:
        self.weights: Weights = {"fc.weight": np.ones((1008, 2048), np.float32)}
        self.weights["fc.bias"] = np.ones(1008, np.float32)
        self.rng = np.random.default_rng(2)
        self.image = image
        self.output = self.features(image.astype(np.float64))

    def conv(
        self, x: np.ndarray, name: str, out: int, kernel: tuple[int, int], stride: int = 0
    ) -> np.ndarray:
        """Convolution, norm and ReLU; stride 0: stride 1 with padding."""
        (height, width), channels = kernel, x.shape[-1]
        std = math.sqrt(2 / (channels * height * width))
        weight = self.rng.normal(0, std, (out, channels, height, width)).astype(np.float32)
        gain, bias, mean, variance = self.rng.uniform(0.1, 0.5, (4, out)).astype(np.float32)
        gain = gain + 0.5
        parts = {"weight": gain, "bias": bias, "running_mean": mean, "running_var": variance}
        self.weights |= {f"{name}.bn.{part}": value for part, value in parts.items()}
        self.weights[f"{name}.conv.weight"] = weight
        self.weights[f"{name}.bn.num_batches_tracked"] = np.array(7)
        if not stride:
            x = np.pad(x, ((height // 2,) * 2, (width // 2,) * 2, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel, (0, 1))
        windows = windows[:: max(stride, 1), :: max(stride, 1)]
        x = np.tensordot(windows, weight, ((2, 3, 4), (1, 2, 3)))
        return np.maximum((x - mean) / np.sqrt(variance + 0.001) * gain + bias, 0)

    @staticmethod
    def pool(x: np.ndarray, reduce: Callable[..., np.ndarray], *, padded: bool) -> np.ndarray:
        """3 x 3: stride 1 over what lies inside the image, or stride 2 without padding."""
        if padded:
            x = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))
        return reduce(windows if padded else windows[::2, ::2], (3, 4))

    def a(self, x: np.ndarray, name: str, pool: int) -> np.ndarray:
        one = self.conv(x, f"{name}.branch1x1", 64, (1, 1))
        five = self.conv(x, f"{name}.branch5x5_1", 48, (1, 1))
        five = self.conv(five, f"{name}.branch5x5_2", 64, (5, 5))
        three = self.conv(x, f"{name}.branch3x3dbl_1", 64, (1, 1))
        three = self.conv(three, f"{name}.branch3x3dbl_2", 96, (3, 3))
        three = self.conv(three, f"{name}.branch3x3dbl_3", 96, (3, 3))
        mean = self.pool(x, np.nanmean, padded=True)
        return np.concatenate(
            [one, five, three, self.conv(mean, f"{name}.branch_pool", pool, (1, 1))], -1
        )

    def b(self, x: np.ndarray, name: str) -> np.ndarray:
        three = self.conv(x, f"{name}.branch3x3", 384, (3, 3), 2)
        double = self.conv(x, f"{name}.branch3x3dbl_1", 64, (1, 1))
        double = self.conv(double, f"{name}.branch3x3dbl_2", 96, (3, 3))
        double = self.conv(double, f"{name}.branch3x3dbl_3", 96, (3, 3), 2)
        return np.concatenate([three, double, self.pool(x, np.max, padded=False)], -1)

    def c(self, x: np.ndarray, name: str, width: int) -> np.ndarray:
        one = self.conv(x, f"{name}.branch1x1", 192, (1, 1))
        seven = self.conv(x, f"{name}.branch7x7_1", width, (1, 1))
        seven = self.conv(seven, f"{name}.branch7x7_2", width, (1, 7))
        seven = self.conv(seven, f"{name}.branch7x7_3", 192, (7, 1))
        double = self.conv(x, f"{name}.branch7x7dbl_1", width, (1, 1))
        double = self.conv(double, f"{name}.branch7x7dbl_2", width, (7, 1))
        double = self.conv(double, f"{name}.branch7x7dbl_3", width, (1, 7))
        double = self.conv(double, f"{name}.branch7x7dbl_4", width, (7, 1))
        double = self.conv(double, f"{name}.branch7x7dbl_5", 192, (1, 7))
        mean = self.pool(x, np.nanmean, padded=True)
        return np.concatenate(
            [one, seven, double, self.conv(mean, f"{name}.branch_pool", 192, (1, 1))], -1
        )

    def d(self, x: np.ndarray, name: str) -> np.ndarray:
        three = self.conv(x, f"{name}.branch3x3_1", 192, (1, 1))
        three = self.conv(three, f"{name}.branch3x3_2", 320, (3, 3), 2)
        seven = self.conv(x, f"{name}.branch7x7x3_1", 192, (1, 1))
        seven = self.conv(seven, f"{name}.branch7x7x3_2", 192, (1, 7))
        seven = self.conv(seven, f"{name}.branch7x7x3_3", 192, (7, 1))
        seven = self.conv(seven, f"{name}.branch7x7x3_4", 192, (3, 3), 2)
        return np.concatenate([three, seven, self.pool(x, np.max, padded=False)], -1)

    def e(self, x: np.ndarray, name: str, reduce: Callable[..., np.ndarray]) -> np.ndarray:
        outputs = [self.conv(x, f"{name}.branch1x1", 320, (1, 1))]
        three = self.conv(x, f"{name}.branch3x3_1", 384, (1, 1))
        outputs.append(self.conv(three, f"{name}.branch3x3_2a", 384, (1, 3)))
        outputs.append(self.conv(three, f"{name}.branch3x3_2b", 384, (3, 1)))
        double = self.conv(x, f"{name}.branch3x3dbl_1", 448, (1, 1))
        double = self.conv(double, f"{name}.branch3x3dbl_2", 384, (3, 3))
        outputs.append(self.conv(double, f"{name}.branch3x3dbl_3a", 384, (1, 3)))
        outputs.append(self.conv(double, f"{name}.branch3x3dbl_3b", 384, (3, 1)))
        pooled = self.pool(x, reduce, padded=True)
        outputs.append(self.conv(pooled, f"{name}.branch_pool", 192, (1, 1)))
        return np.concatenate(outputs, -1)

    def features(self, image: np.ndarray) -> np.ndarray:
        x = ((tensorflow_resize(image) - 128) / 128).astype(np.float32)
        x = self.conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2)
        x = self.conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1)
        x = self.pool(self.conv(x, "Conv2d_2b_3x3", 64, (3, 3)), np.max, padded=False)
        x = self.conv(x, "Conv2d_3b_1x1", 80, (1, 1))
        x = self.pool(self.conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1), np.max, padded=False)
        for letter, pool in zip("bcd", (32, 64, 64), strict=True):
            x = self.a(x, f"Mixed_5{letter}", pool)
        x = self.b(x, "Mixed_6a")
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = self.c(x, f"Mixed_6{letter}", width)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", np.nanmean)
        x = self.e(x, "Mixed_7c", np.nanmax)
        assert x.shape == (8, 8, 2048)
        return x.mean((0, 1))


def tensorflow_resize(image: np.ndarray) -> np.ndarray:
    """tf.compat.v1.image.resize_bilinear(image, (299, 299)), pixel by pixel."""
    height, width, channels = image.shape
    out = np.zeros((299, 299, channels))
    for i in range(299):
        for j in range(299):
            y, x = i * height / 299, j * width / 299
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            lower = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
            out[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return out
