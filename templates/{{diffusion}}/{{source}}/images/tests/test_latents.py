"""Latents are those of the autoencoder, cached once, and of no other one."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ...errors import UserError
from .. import latents as latents_module
from ..latents import load, open_autoencoder, scale, unscale
from ..pixels import to_network
from ..prepare import prepare
from ..rows import Rows
from ..settings import DataConfig
from ..shards import describe, open_split, read_manifest
from .prepared import KilledError, files_of

CODES = 12  # of 30 pixels


class Linear:
    """Principal components of pictures of 6 x 5 pixels, as latents of 2 x 2 places."""

    def __init__(self, components: np.ndarray, noise: float = 0.0) -> None:
        self.components, self.noise, self.batches = jnp.array(components), noise, 0

    def encode(self, images: jax.Array, key: jax.Array) -> jax.Array:
        self.batches += 1
        codes = images.reshape(len(images), -1) @ self.components.T
        codes = codes + self.noise * jax.random.normal(key, codes.shape)
        return codes.reshape(len(images), 2, 2, -1)

    def decode(self, latents: jax.Array) -> jax.Array:
        codes = latents.reshape(len(latents), -1)
        return (codes @ self.components).reshape(-1, 6, 5, 1)


def orthogonal(seed: int) -> np.ndarray:
    normal = np.random.default_rng(seed).normal(size=(30, 30))
    return np.linalg.qr(normal)[0][:CODES].astype(np.float32)


@pytest.fixture
def linear(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[DataConfig, types.ModuleType]:
    """Pictures that twelve numbers describe, and a module `coder` with their autoencoder."""
    monkeypatch.setattr(latents_module, "BATCH_IMAGES", 4)
    basis, random = orthogonal(0), np.random.default_rng(1)
    codes = random.normal(size=(200, CODES)) * 0.4
    images = np.clip((codes @ basis + 1) * 127.5, 0, 255).round().astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images.reshape(-1, 6, 5), labels=np.arange(200) % 3)
    module = types.ModuleType("coder")
    module.PCA = Linear(fit(images))
    monkeypatch.setitem(sys.modules, "coder", module)
    source = str(tmp_path / "a.npz")
    return replace(config, source=source, autoencoder="coder:PCA"), module


def fit(images: np.ndarray) -> np.ndarray:
    """Principal components, without a mean: of images about grey."""
    return np.linalg.svd(images / 127.5 - 1, full_matrices=False)[2][:CODES].astype(np.float32)


def test_latents_are_those_of_the_pixels_and_decode_to_them(
    linear: tuple[DataConfig, types.ModuleType],
) -> None:
    config, module = linear
    manifest = prepare(config, show=False)
    assert manifest == read_manifest(config.prepared_dir)
    assert manifest.latents.shape == (2, 2, 3)
    assert "latents: 2 x 2 x 3" in describe(manifest)
    every = []
    for name in ("train", "heldout"):
        split = open_split(config.prepared_dir, name)
        pixels, stored = (x.read(range(len(split))) for x in (split.pixels, split.latents))
        assert stored.dtype == np.float16
        images = to_network(pixels, 256)
        expected = module.PCA.encode(images, jax.random.key(0))
        np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)  # of 16 bits
        decoded = module.PCA.decode(jnp.array(stored, jnp.float32))
        # Rounding to 256 levels has a standard deviation of 0.0023, 16 bits much less.
        assert float(jnp.sqrt(((decoded - images) ** 2).mean())) < 0.005
        row = Rows(split)[1]
        np.testing.assert_array_equal(row["image"], stored[1])
        assert row["label"] == split.labels[1]
        every.append(stored)
    scaled = scale(every[0], manifest.latents, 0.5)
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), 0.5, rtol=1e-3)
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(unscale(scaled, manifest.latents, 0.5), every[0], atol=1e-4)


def test_drawn_latents_have_a_key_of_their_own_and_are_the_same_again(
    linear: tuple[DataConfig, types.ModuleType],
) -> None:
    config, module = linear
    exact = prepare(replace(config, prepared_dir=config.prepared_dir + "0"), show=False)
    module.PCA.noise = 0.1
    drawn = prepare(config, show=False)
    noise = []
    for name in ("train", "heldout"):
        with_noise, without = (
            open_split(f"{config.prepared_dir}{end}", name).latents for end in ("", "0")
        )
        rows = range(len(with_noise))
        noise.append(with_noise.read(rows).astype(np.float32) - without.read(rows))
    noise = np.concatenate(noise).reshape(200, -1)
    assert abs(noise.std() - 0.1) < 5 * 0.1 / np.sqrt(2 * noise.size)
    assert np.abs(np.corrcoef(noise) - np.eye(200)).max() < 0.99  # no two images share theirs
    assert drawn.images_sha256 != exact.images_sha256
    again = prepare(replace(config, prepared_dir=config.prepared_dir + "1"), show=False)
    assert again.images_sha256 == drawn.images_sha256


def test_a_kill_loses_at_most_a_shard_of_latents(
    linear: tuple[DataConfig, types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, module = linear
    module.PCA.noise = 0.1
    prepare(replace(config, prepared_dir=config.prepared_dir + "0"), show=False)
    expected = files_of(replace(config, prepared_dir=config.prepared_dir + "0"))
    add, left = latents_module.add, 3

    def limited_add(*args: object) -> None:
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1
        add(*args)

    with monkeypatch.context() as killing:
        killing.setattr(latents_module, "add", limited_add)
        with pytest.raises(KilledError):
            prepare(config, show=False)
    with pytest.raises(UserError, match="goes on where it stopped"):
        open_split(config.prepared_dir, "train")
    before, module.PCA.batches = files_of(config), 0
    other, module.PCA = module.PCA, Linear(orthogonal(7))
    with pytest.raises(UserError, match="as when the latents were made"):
        prepare(config, show=False)
    assert files_of(config) == before
    module.PCA = other
    prepare(config, show=False)
    assert files_of(config) == expected
    made = [name for name in expected if ".latents." in name and name not in before]
    rows = [len(np.load(Path(config.prepared_dir) / name)) for name in made]
    assert module.PCA.batches == sum(-(-count // 4) for count in rows) + 1  # and the probe


def test_another_autoencoder_is_refused(linear: tuple[DataConfig, types.ModuleType]) -> None:
    config, module = linear
    manifest = prepare(config, show=False)
    assert open_autoencoder(manifest) is module.PCA
    same = module.PCA.components
    module.PCA = Linear(same * 1.001)  # as another device's precision
    open_autoencoder(manifest)
    for components in (orthogonal(3), same[::-1], -same, same[:8]):
        module.PCA = Linear(components)
        with pytest.raises(UserError, match=r"(?s)coder:PCA.*as when the latents were made"):
            open_autoencoder(manifest)


@pytest.mark.parametrize("name", ["", "coder", "coder:", "coder:gone", "no_such:PCA", ":PCA", "."])
def test_a_name_of_nothing_is_refused_before_anything_is_read(
    linear: tuple[DataConfig, types.ModuleType], name: str
) -> None:
    config, _ = linear
    with pytest.raises(UserError, match=r"MODULE:NAME"):
        load(name)
    if name:
        with pytest.raises(UserError, match=r"MODULE:NAME"):
            prepare(replace(config, autoencoder=name), show=False)
        assert not [n for n in files_of(config) if n != ".lock"]


def test_what_is_no_autoencoder_is_refused(linear: tuple[DataConfig, types.ModuleType]) -> None:
    _, module = linear
    module.klass, module.number = Linear, 7
    module.half = types.SimpleNamespace(encode=print)
    for name in ("klass", "number", "half"):
        with pytest.raises(UserError, match=rf"(?s)coder:{name}, which is.*encode and decode"):
            load(f"coder:{name}")


def broken(**methods: object) -> types.SimpleNamespace:
    whole = Linear(orthogonal(0))
    return types.SimpleNamespace(**{"encode": whole.encode, "decode": whole.decode} | methods)


WHOLE = Linear(orthogonal(0))
BROKEN = {
    "batch": (broken(encode=lambda x, key: WHOLE.encode(x, key)[:1]), "(1, 2, 2, 3)"),
    "flat": (
        broken(encode=lambda x, key: x.reshape(len(x), -1)),
        "encodes (2, 6, 5, 1) to (2, 30)",
    ),
    "nan": (broken(encode=lambda x, key: WHOLE.encode(x, key) * jnp.nan), "not finite in 16 bits"),
    "large": (broken(encode=lambda x, key: WHOLE.encode(x, key) * 1e6), "not finite in 16 bits"),
    "size": (broken(decode=lambda z: WHOLE.decode(z)[:, 1:]), "decodes to (2, 5, 5, 1)"),
    "image-nan": (broken(decode=lambda z: WHOLE.decode(z) / 0), "decodes to (2, 6, 5, 1) with"),
    "constant": (broken(encode=lambda x, key: WHOLE.encode(x, key).at[..., 1].set(3)), "std"),
    "tiny": (broken(encode=lambda x, key: WHOLE.encode(x, key) * 1e-4), "more than 0.001"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_autoencoder_is_refused(
    linear: tuple[DataConfig, types.ModuleType], case: str
) -> None:
    config, module = linear
    module.PCA, words = BROKEN[case]
    with pytest.raises(UserError) as caught:
        prepare(config, show=False)
    assert words.replace("std", "standard deviations") in str(caught.value)
    assert "coder:PCA" in str(caught.value)


def test_a_damaged_shard_of_latents_is_named(linear: tuple[DataConfig, types.ModuleType]) -> None:
    config, _ = linear
    manifest = prepare(config, show=False)
    path = Path(config.prepared_dir) / "train-00000.latents.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=manifest.files[path.name]) as caught:
        open_split(config.prepared_dir, "train")
    assert str(path) in str(caught.value)
