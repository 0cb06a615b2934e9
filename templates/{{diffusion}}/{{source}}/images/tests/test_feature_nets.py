"""The networks of FID and FD-DINOv2 against reference_nets.py, with random weights."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ...errors import UserError
from .. import dinov2
from ..feature_nets import FeatureNet, open_features, run
from .reference_nets import WIDTH, InceptionReference, Weights, vit_reference, vit_weights

MLP = "encoder.layer.1.mlp.fc2.weight"


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def saved(folder: Path, weights: Weights) -> Path:
    save_file({name: np.ascontiguousarray(x) for name, x in weights.items()}, folder / "x")
    return folder / "x"


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> FeatureNet:
    return open_features(saved(tmp_path_factory.mktemp("vit"), vit_weights()), batch_size=3)


@pytest.fixture(scope="module")
def inception() -> InceptionReference:
    return InceptionReference(pixels(9, 13, 3))


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_inception_is_that_of_fid(inception: InceptionReference, tmp_path: Path) -> None:
    net = open_features(saved(tmp_path, inception.weights), batch_size=1)
    assert net.metric == "FID"
    # 94 float32 convolutions on either side: about 1e-6; an epsilon of 1e-5 moves 1e-3.
    assert relative(net(inception.image[None])[0], inception.output) < 2e-5


@pytest.mark.parametrize("size", [(20, 31), (224, 224), (300, 400)])
def test_dinov2_is_that_of_edm2(vit: FeatureNet, size: tuple[int, int]) -> None:
    images = pixels(2, *size, 3)
    assert vit.metric == "FD-DINOv2"
    # TORCH_BICUBIC is written to six digits.
    assert relative(vit(images), vit_reference(vit_weights(), images)) < 1e-5


def test_positions_of_the_same_grid_stay() -> None:
    table = np.random.default_rng(0).normal(size=(1, 17, 6)).astype(np.float32)
    np.testing.assert_array_equal(dinov2.positions(jax.numpy.asarray(table), 4), table)


def test_epsilon_of_the_norm() -> None:
    x = jax.numpy.asarray([[1e-3, -1e-3]])  # of variance 1e-6, as is epsilon: halved by it
    parts = {"n.weight": jax.numpy.ones(2), "n.bias": jax.numpy.zeros(2)}
    np.testing.assert_allclose(dinov2.norm(parts, "n", x)[0], [0.5**0.5, -(0.5**0.5)], rtol=1e-5)


def test_batches_do_not_matter(vit: FeatureNet, tmp_path: Path) -> None:
    images = pixels(7, 8, 8, 3)
    features = vit(images)
    assert features.shape == (7, WIDTH)
    alone = [vit(images[i : i + 1])[0] for i in (0, 4, 6)]
    np.testing.assert_array_equal(features[[0, 4, 6]], alone)
    other = open_features(saved(tmp_path, vit_weights()), batch_size=5)
    assert relative(other(images), features) < 1e-5


def test_one_program_for_all_batches(vit: FeatureNet) -> None:
    before = run._cache_size()
    vit(pixels(7, 8, 9, 3))
    vit(pixels(2, 8, 9, 3))
    assert run._cache_size() == before + 1


def test_grey_is_repeated(vit: FeatureNet) -> None:
    grey = pixels(2, 8, 8, 1)
    assert relative(vit(grey), vit(np.repeat(grey, 3, -1))) < 1e-5


def test_floats_become_eight_bits(vit: FeatureNet) -> None:
    images = pixels(3, 8, 8, 3)
    images[0, 0], images[0, 1] = 0, 255
    floats = images / np.float32(127.5) - 1
    noise = np.random.default_rng(3).uniform(-0.49, 0.49, images.shape).astype(np.float32) / 127.5
    beyond = np.where(np.abs(floats) == 1, 1.2 * floats, floats + noise)
    assert relative(vit(floats), vit(images)) < 1e-5
    assert relative(vit(beyond.astype(np.float32)), vit(images)) < 1e-5


def test_latents_are_refused(vit: FeatureNet) -> None:
    with pytest.raises(UserError, match="4 channels, for FD-DINOv2"):
        vit(pixels(1, 8, 8, 4))


def test_products_are_in_float32(vit: FeatureNet) -> None:
    """What a GPU would round to TF32 and a TPU to bfloat16."""
    text = run.lower(vit.network, vit.params, pixels(3, 8, 8, 3)).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", text)
    assert len(products) >= 1 + 2 * 8  # the patches; of each layer six matrices and attention's two
    assert all("HIGHEST" in product for product in products)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({MLP: None}, f"like FD-DINOv2 but without {MLP} \\(1 in all\\)"),
        ({"layernorm.bias": None}, "without layernorm.bias"),
        ({"embeddings.register_tokens": np.zeros(4)}, "but with embeddings.register_tokens"),
        ({MLP: np.zeros((WIDTH, 7), np.float32)}, "like FD-DINOv2 but: .*7"),
        ({"embeddings.patch_embeddings.projection.weight": None}, "hf download facebook/dinov2"),
    ],
)
def test_other_transformers_are_refused(
    tmp_path: Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    weights = {name: x for name, x in (vit_weights() | change).items() if x is not None}
    with pytest.raises(UserError, match=message):
        open_features(saved(tmp_path, weights))


def test_other_inceptions_are_refused(inception: InceptionReference, tmp_path: Path) -> None:
    names = dict.fromkeys(inception.weights, np.zeros(1, np.float32))
    path = saved(tmp_path, names | {"fc.weight": np.zeros((1000, 1), np.float32)})
    with pytest.raises(UserError, match=r"fc\.weight is of 1000 classes"):
        open_features(path)
    del names["Mixed_7c.branch3x3_2b.bn.running_var"]
    with pytest.raises(UserError, match=r"like FID but without Mixed_7c\.branch3x3_2b\.bn"):
        open_features(saved(tmp_path, names))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors"):
        open_features(tmp_path / "none.safetensors")
    (tmp_path / "net.pth").write_bytes(b"PK" * 100)
    with pytest.raises(UserError, match=r"net\.pth: .*header"):
        open_features(tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"with a \(1 in all\)"):
        open_features(saved(tmp_path, {"a": np.zeros(1)}))
