"""A trained run as an object and by its commands: drawn, judged and exported from any folder."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .. import cli, evaluate, panel, trained
from ..config import Config, DrawConfig
from ..errors import Exit, UserError
from ..generate import balanced_labels, denoiser, guided_denoiser, make_generate
from ..images.distances import frechet_distance
from ..images.feature_nets import FeatureNet
from ..images.features import train_classifier
from ..images.pixels import to_network
from ..runtime.saved import Saved, all_saved
from ..runtime.sharding import make_mesh
from ..trained import open_run


def test_the_summary_and_the_pictures_are_there(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    for name in ("samples", "floor", "baseline"):
        assert np.isfinite(list(summary[name].values())).all()
    assert summary["floor"]["frechet_heldout"] < summary["samples"]["frechet_heldout"]
    assert summary["samples"]["memorisation"] > 0.85
    assert np.isfinite(list(summary["bits_per_dimension"].values())).all()
    assert summary["heldout_loss_noise_1of4"] != summary["heldout_loss_noise_4of4"]
    names = {file.name.rpartition("-")[0] for file in (run_dir / "artifacts").iterdir()}
    assert names == {"samples", "from-noise", "nearest-in-training", "guidance-by-steps"}
    assert "guidance-by-steps" in (run_dir / "report.html").read_text()


def test_an_image_depends_on_index_label_and_seed_alone(run_dir: Path) -> None:
    opened = open_run(run_dir)
    all_at_once = opened.sample(20, seed=3)
    assert all_at_once.dtype == np.uint8
    assert all_at_once.shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(opened.sample(20, seed=3), all_at_once)
    assert (opened.sample(20, seed=4) != all_at_once).any()
    np.testing.assert_array_equal(opened.sample(7, seed=3), all_at_once[:7])  # another batch
    fives = opened.sample(20, np.array([5]), seed=3)
    np.testing.assert_array_equal(fives[5], all_at_once[5])
    assert (fives[4] != all_at_once[4]).any()
    one = make_mesh(replace(opened.learner.config.mesh, data=1), jax.devices()[:1])
    here = jax.device_put(opened.params, jax.devices()[0])
    alone = make_generate(opened.learner, one, opened.learner.config.sample)
    drawn = alone(jax.device_get(here), balanced_labels(opened.learner, 20), 3)
    many = opened._generate(opened.params, balanced_labels(opened.learner, 20), 3)
    np.testing.assert_allclose(drawn, many, atol=1e-4)  # 1 and 8 devices


def test_it_is_opened_from_any_folder_and_says_what_is_missing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_run(run_dir).split("heldout").labels
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_dir, tmp_path / "moved/run")
    np.testing.assert_array_equal(open_run("moved/run").split("heldout").labels, expected)
    config = json.loads((tmp_path / "moved/run/config.json").read_text())
    config["paths_absolute"] = {"data.prepared_dir": "/nowhere"}
    (tmp_path / "moved/run/config.json").write_text(json.dumps(config))
    shutil.move(run_dir.parent / "digits", run_dir.parent / "digits-away")
    try:
        assert open_run("moved/run").sample(2).shape == (2, 8, 8, 1)
        with pytest.raises(UserError, match=r"(?s)digits near .*images_sha256.*prepare --config"):
            open_run("moved/run").split("heldout")
        other = run_dir.parent / "digits"  # images of another preparation under the same name
        shutil.copytree(run_dir.parent / "digits-away", other)
        manifest = json.loads((other / "manifest.json").read_text()) | {"images_sha256": "0"}
        (other / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="images_sha256"):
            open_run("moved/run").split("heldout")
    finally:
        shutil.rmtree(run_dir.parent / "digits", ignore_errors=True)
        shutil.move(f"{run_dir.parent}/digits-away", run_dir.parent / "digits")


def test_few_images_are_in_memory_at_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_run(run_dir)
    train, (whole, drawn) = opened.split("train"), (opened.sample(20), [])
    draw = opened._generate

    def counted(*args: Any, **options: Any) -> np.ndarray:
        drawn.append(len(args[1]))
        return draw(*args, **options)

    monkeypatch.setitem(opened.__dict__, "_generate", counted)
    monkeypatch.setattr(evaluate, "NUMBERS", 6 * 64)
    np.testing.assert_array_equal(opened.sample(20), whole)
    assert drawn == [6, 6, 6, 2]
    assert len(evaluate.spread(opened.split("train"), 100)["label"]) == 6
    # A network that the user supplies sees all of them, part by part.
    seen: list[int] = []

    class Network(FeatureNet):
        metric = "FID"

        def __init__(self) -> None:
            pass

        def __call__(self, images: np.ndarray) -> np.ndarray:
            seen.append(len(images))
            return images.reshape(len(images), -1)[:, 20:24]

    monkeypatch.setattr(panel, "FEATURE_IMAGES", 10)
    found = panel._distance_by(Network(), whole, train, 17, lambda: None)
    assert seen == [6, 6, 6, 2, 6, 4]
    spread = np.linspace(0, len(train) - 1, 10).round().astype(int)  # a source may be sorted
    ours, real = (np.asarray(to_network(x, 17)) for x in (whole, train.pixels.read(spread)))
    flat = [x.reshape(len(x), -1)[:, 20:24].astype(float) for x in (ours, real)]
    assert found == {"FID": frechet_distance(*flat), "FID_images": 20, "FID_training_images": 10}


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++", "churn", "adaptive"])
def test_every_sampler_draws(run_dir: Path, sampler: Any) -> None:
    images = open_run(run_dir, DrawConfig(sampler=sampler, guidance=1.5)).sample(8)
    assert images.std() > 0


def test_churn_is_as_much_as_is_asked_for(run_dir: Path) -> None:
    def drawn(**draw: Any) -> np.ndarray:
        opened = open_run(run_dir, DrawConfig(**draw))
        return opened._generate(opened.params, opened.labels(8), 0)

    heun, none, some, usual = (
        drawn(),
        *(drawn(sampler="churn", churn=churn) for churn in (0.0, 0.2, None)),
    )
    np.testing.assert_allclose(none, heun, atol=1e-3)  # no fresh noise is Heun's method
    assert np.abs(some - heun).max() > 1e-2
    assert np.abs(usual - some).max() > 1e-2


def test_guidance_and_averages_change_what_is_drawn(run_dir: Path) -> None:
    def drawn(**draw: Any) -> np.ndarray:
        opened = open_run(run_dir, DrawConfig(**draw))
        return opened._generate(opened.params, opened.labels(8), 0, weak=opened.weak)

    usual = drawn()
    np.testing.assert_array_equal(drawn(guidance=1.0), usual)
    others = [
        drawn(guidance=3.0),
        drawn(guidance=3.0, guidance_to=0.5),
        drawn(guidance=3.0, guide_step=6),
        drawn(ema="raw"),
        drawn(ema="power-0.1"),
        drawn(ema="power-0.15"),
        drawn(step=12),
    ]
    for index, other in enumerate(others):
        assert np.abs(other - usual).max() > 1e-4, index
        assert not any(np.array_equal(other, more) for more in others[index + 1 :]), index
    # An interval without noise levels is no guidance.
    np.testing.assert_array_equal(drawn(guidance=3.0, guidance_from=0.0, guidance_to=0.0), usual)


def test_guidance_is_away_from_the_prediction_without_class(run_dir: Path) -> None:
    opened = open_run(run_dir, DrawConfig(guidance=3.0))
    x, t = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.float32(0.5)
    labels, none = jnp.arange(4), jnp.full(4, 10)
    config, scale = opened.learner.config.sample, jnp.full((4, 1, 1, 1), 3.0)
    guided = guided_denoiser(opened.learner, config, opened.params, None, labels, scale)(x, t)
    near, far = (denoiser(opened.learner, opened.params, y)(x, t)[0] for y in (labels, none))
    assert float(jnp.abs(near - far).max()) > 1e-3
    np.testing.assert_allclose(guided[0], far + 3 * (near - far), atol=1e-5)


def test_guidance_is_away_from_an_earlier_network_within_its_interval(run_dir: Path) -> None:
    draw = DrawConfig(guidance=3.0, guidance_from=0.4, guidance_to=0.6, guide_step=6)
    opened, labels = open_run(run_dir, draw), jnp.arange(4)
    assert opened.about == "heun in 2 steps, guidance 3 away from step 6, decay-0.9"
    x, scale = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.full((4, 1, 1, 1), 3.0)
    config, earlier = opened.learner.config.sample, open_run(run_dir, DrawConfig(step=6))
    for t, guides in ((0.3, False), (0.5, True), (0.7, False)):
        at = jnp.float32(t)
        guided = guided_denoiser(opened.learner, config, opened.params, opened.weak, labels, scale)
        near, far = (
            denoiser(opened.learner, params, labels)(x, at)[0]
            for params in (opened.params, earlier.params)
        )
        assert float(jnp.abs(near - far).max()) > 1e-3
        expected = far + 3 * (near - far) if guides else near
        np.testing.assert_allclose(guided(x, at)[0], expected, atol=1e-5)
    with pytest.raises(UserError, match=r"(?s)guide-step 6 with guidance 1.*--guidance 2"):
        open_run(run_dir, DrawConfig(guide_step=6))


def test_a_post_hoc_average_is_near_the_one_that_is_tracked(run_dir: Path) -> None:
    tracked = open_run(run_dir, DrawConfig(ema="power-0.1")).params
    made = open_run(run_dir, DrawConfig(ema="power-0.100001")).params
    raw = open_run(run_dir, DrawConfig(ema="raw")).params

    def distance(one: Any, other: Any) -> float:
        squares = jax.tree.map(lambda a, b: float(((a - b) ** 2).sum()), one, other)
        return sum(jax.tree.leaves(squares)) ** 0.5

    assert distance(made, tracked) < 0.01 * distance(raw, tracked)
    # From the checkpoints up to one, not from later ones.
    tracked, made = (
        open_run(run_dir, DrawConfig(step=12, ema=f"power-{std}")).params
        for std in ("0.1", "0.100001")
    )
    assert distance(made, tracked) < 0.01 * distance(raw, tracked)
    assert [saved.step for saved in all_saved(run_dir, Config())] == [6, 12, 18, 24]


def test_a_post_hoc_average_counts_updates_not_steps(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, weights, counted = Saved.load_part, trained.post_hoc_weights, []

    def skipped_two(saved: Any, path: Any, *rest: Any) -> Any:
        return np.int32(2) if path == ("skipped",) else load(saved, path, *rest)

    def watched(updates: list[int], *rest: Any) -> Any:
        counted.extend(updates)
        return weights(updates, *rest)

    monkeypatch.setattr(Saved, "load_part", skipped_two)
    monkeypatch.setattr(trained, "post_hoc_weights", watched)
    open_run(run_dir, DrawConfig(ema="power-0.15"))
    assert counted == [4, 4, 10, 10, 16, 16, 22, 22]  # of two widths each


def test_likelihood_is_of_each_image(run_dir: Path) -> None:
    opened = open_run(run_dir)
    heldout = opened.split("heldout")
    pixels, labels = heldout.pixels.read(range(6)), heldout.labels[:6]
    bits = opened.bits_per_dimension(pixels, labels)
    assert bits.shape == (6,)
    assert (np.abs(opened.bits_per_dimension(pixels, (labels + 1) % 10) - bits) > 1e-6).all()
    # Dequantized, each by noise of its own.
    one, other = opened.bits_per_dimension(pixels[[0, 0]], labels[[0, 0]])
    assert 1e-4 < abs(one - other) < 1
    noise = np.random.default_rng(0).integers(0, 17, pixels.shape).astype(np.uint8)
    assert (opened.bits_per_dimension(noise, labels) > bits).all()
    estimated = opened.bits_per_dimension(pixels, labels, probes=16)
    np.testing.assert_allclose(estimated, bits, atol=0.15)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (
            {"ema": "decay-0.5"},
            r"decay-0.5.*one of raw, decay-0.9, power-0.1, power-0.2, or power-STD",
        ),
        ({"ema": "power-much"}, r"power-much.*choose"),
        ({"ema": "power-0.28"}, r"relative width 0.28.*of width 0.1, 0.2"),
        ({"step": 7}, r"step 7.*6, 12, 18, 24"),
        ({"sampler_steps": 0}, r"sampler-steps 0.*at least 1"),
    ],
)
def test_what_is_not_there_is_refused(run_dir: Path, draw: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"(?s){words}"):
        open_run(run_dir, DrawConfig(**draw))


def test_classes_that_are_not_there_are_refused(run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)\[3, 10\].*0 to 9"):
        open_run(run_dir).labels(4, [3, 10])


def test_the_commands(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(panel, "train_classifier", partial(train_classifier, steps=30))
    line = f"sample --run-dir {run_dir} --count 12 --classes 3 4 --guidance 2 --to drawn"
    assert cli.run(line.split())[0] == Exit.DONE
    assert "guidance 2" in capsys.readouterr().out
    with np.load(tmp_path / "drawn" / "images.npz") as drawn:
        assert drawn["images"].shape == (12, 8, 8, 1)
        assert drawn["labels"].tolist() == [3, 4] * 6
    assert (tmp_path / "drawn" / "images.png").read_bytes()[1:4] == b"PNG"
    line = f"evaluate --run-dir {run_dir} --images 20 --probes 1 --to found.json"
    assert cli.run(line.split())[0] == Exit.DONE
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"step", "samples", "floor", "baseline", "bits_per_dimension"} <= set(found)
    assert (found["judged"], found["drawn"][:9]) == (20, "20 images")
    for wrong, says in (
        (f"sample --run-dir {run_dir} --sampler-steps 0", "at least 1"),
        (f"sample --run-dir {tmp_path / 'nowhere'}", "without a checkpoint"),
        (f"export --run-dir {run_dir} --to x --sampler adaptive", "choose heun"),
        (f"evaluate --run-dir {run_dir} --images 20 --features nowhere", "nowhere"),
        (f"sample --run-dir {run_dir} --to gs://bucket/x", "a folder on a disk"),
        (f"export --run-dir {run_dir} --to s3://bucket/x", "a folder on a disk"),
    ):
        assert cli.run(wrong.split())[0] == Exit.USER
        assert says in capsys.readouterr().err
