"""Writing text: the cache changes nothing; a run is opened as it was saved, and scores texts."""

import contextlib
import inspect
import itertools
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from .. import trained
from ..attention import attend
from ..commands.evaluate import evaluate
from ..commands.sample import sample as sample_command
from ..config import Config
from ..errors import UserError
from ..evaluate import bits_per_byte
from ..generate import choose, empty_cache, forward_cached, make_artifacts, make_generate
from ..run_config import MeshConfig, from_dict, to_dict
from ..runtime import loop
from ..runtime.guards import CompileCount
from ..runtime.sharding import make_mesh
from ..step import Learner, init_state, make_learner, token_losses
from ..text.shards import Split
from ..trained import open_run
from ..workload import make_workload
from . import tiny

LENGTH = tiny.CONFIG.data.seq_len


def full_logits(learner: Learner, params: Any, tokens: jax.Array) -> jax.Array:
    """Of the training forward, without a cache."""
    model = nnx.merge(learner.graph, nnx.State(params))
    return model.logits(model(jnp.asarray(tokens), lambda q, k, v: attend(q, k, v, None, "xla")))


def test_cached_logits_equal_the_full_forward() -> None:
    learner, params = tiny.learner(), tiny.parameters()
    tokens = jnp.asarray(tiny.random_tokens(2, LENGTH))
    model = nnx.merge(learner.graph, nnx.State(params))
    step = jax.jit(partial(forward_cached, learner))
    # Twenty at once, padded with what must not be seen; the others one by one.
    padded = jnp.where(jnp.arange(LENGTH) < 20, tokens, 3)
    hidden, cache = step(params, padded, jnp.asarray(0), empty_cache(learner, rows=2))
    logits = [model.logits(hidden)[:, :20]]
    for position in range(20, LENGTH):
        hidden, cache = step(
            params, tokens[:, position : position + 1], jnp.asarray(position), cache
        )
        logits.append(model.logits(hidden))
    expected = full_logits(learner, params, tokens)
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), expected, atol=2e-5)


@pytest.mark.parametrize("packing", ["segments", "documents"])
def test_greedy_text_is_the_argmax_of_the_full_forward_also_after_sliding(packing: str) -> None:
    data, params = replace(tiny.CONFIG.data, packing=packing), tiny.parameters()
    learner = make_learner(replace(tiny.CONFIG, data=data), tiny.VOCAB, tiny.BOS)
    forward = jax.jit(partial(full_logits, learner))
    context, expected = [tiny.BOS, 20, 30], []
    for _ in range(2 * LENGTH):
        if len(context) > LENGTH:
            context = context[-LENGTH // 2 :]
            context[0] = tiny.BOS if packing == "documents" else context[0]
        padded = jnp.array([context + [0] * (LENGTH - len(context))])
        expected.append(int(jnp.argmax(forward(params, padded)[0, len(context) - 1])))
        context.append(expected[-1])
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tokens = make_generate(learner, mesh)(params, [tiny.BOS, 20, 30], 0, 0.0, 1.0)
    assert list(itertools.islice(tokens, 2 * LENGTH)) == expected


def test_draws_follow_temperature_and_top_p() -> None:
    probabilities = np.array([0.1, 0.4, 0.3, 0.2], np.float32)
    keys = jax.random.split(jax.random.key(0), 4000)

    def frequencies(temperature: float, top_p: float) -> np.ndarray:
        draw = jax.vmap(lambda key: choose(jnp.log(probabilities), key, temperature, top_p))
        return np.bincount(draw(keys), minlength=4) / len(keys)

    np.testing.assert_allclose(frequencies(1.0, 1.0), probabilities, atol=0.03)
    np.testing.assert_allclose(frequencies(1.0, 0.6), [0, 4 / 7, 3 / 7, 0], atol=0.03)
    sharper = probabilities**2 / np.sum(probabilities**2)
    np.testing.assert_allclose(frequencies(0.5, 1.0), sharper, atol=0.03)
    assert frequencies(0.0, 1.0).tolist() == [0, 1, 0, 0]


@pytest.fixture(scope="module")
def run_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a run that was trained for two steps on eight devices, in a folder of its own."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.with_text(folder, steps=2, save_every_steps=1)
    data = replace(config.data, prepared_dir="data")
    config = replace(config, data=data, mesh=MeshConfig(fsdp=2, tensor=2))
    mesh = make_mesh(config.mesh)
    with contextlib.chdir(folder):
        assert loop.run(make_workload(config, mesh), config, mesh) == 0
    return config


def test_configuration_survives_its_checkpoint(run_config: Config) -> None:
    assert from_dict(Config(), to_dict(run_config)) == run_config
    assert from_dict(run_config, {"gone.with.an.update": 1}) == run_config


def test_a_run_is_opened_on_its_own_mesh(run_config: Config) -> None:
    run = open_run(run_config.run.run_dir)
    assert (run.step, run.mesh.shape["fsdp"], run.mesh.shape["tensor"]) == (2, 2, 2)
    first = init_state(run.learner, jax.random.key(0))["params"]
    assert jax.tree.map(jnp.shape, run.params) == jax.tree.map(jnp.shape, first)
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), run.params, first)
    assert 0 < max(jax.tree.leaves(moved)) < 0.05  # two steps of AdamW from the same seed


def test_writing_compiles_twice_however_often_it_is_called(run_config: Config) -> None:
    run = open_run(run_config.run.run_dir)  # sharded, so that the cache might be too
    generate = make_generate(run.learner, run.mesh)
    first = list(itertools.islice(generate(run.params, [1], 0, 1.0, 0.9), 4))
    compiled = CompileCount()
    again = list(itertools.islice(generate(run.params, [1], 0, 1.0, 0.9), 60))  # slides twice
    assert again[:4] == first
    assert first != list(itertools.islice(generate(run.params, [1], 1, 0.5, 1.0), 4))
    assert compiled.count == 0


def test_the_artifact_is_what_the_model_writes_now(run_config: Config) -> None:
    run = open_run(run_config.run.run_dir)
    artifacts, beats = make_artifacts(run.learner, run.mesh, run.tokenizer, chars=30), []
    params = run.params
    ((name, text),) = artifacts({"params": params}, lambda: beats.append(0)).items()
    assert (name, isinstance(text, str)) == ("sample", True)
    assert 0 < len(text) <= 30
    assert len(beats) >= len(text) - 1
    compiled = CompileCount()
    assert artifacts({"params": params}, lambda: None) == {name: text}
    other = jax.tree.map(lambda x: -x, params)
    before = compiled.count
    assert artifacts({"params": other}, lambda: None) != {name: text}
    assert compiled.count == before


def test_sample_prints_so_many_characters_and_repeats_itself(
    run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(**options: float) -> str:
        run_dir = run_config.run.run_dir
        assert sample_command(run_dir=run_dir, prompt="line ", chars=40, **options) == 0
        return capsys.readouterr().out

    likeliest = written(temperature=0.0)
    assert likeliest.startswith("line ")
    assert len(likeliest) == len("line ") + 40 + len("\n")
    run = open_run(run_config.run.run_dir)
    for seed in (1, 1, 2):
        text = run.generate("line ", chars=40, seed=seed)
        assert written(seed=seed) == f"line {text}\n" != likeliest
    assert run.generate("line ", chars=40, seed=1) != text
    with pytest.raises(UserError, match=r"(?s)temperature -1.*temperature 0 always"):
        written(temperature=-1.0)


def test_the_losses_of_the_held_out_texts_make_the_exact_figure(run_config: Config) -> None:
    run = open_run(run_config.run.run_dir)
    split = run.heldout()
    texts = [text.decode() for text in split.texts()]
    assert max(map(len, texts)) > 3 * LENGTH  # several windows
    nats = sum(run.loss(text) * (len(run.encode(text)) - 1) for text in texts)
    with jax.set_mesh(run.mesh):
        exact = bits_per_byte(run.learner, run.params, split, run.mesh)["heldout_bits_per_byte"]
    assert nats / math.log(2) / sum(map(len, texts)) == pytest.approx(exact, rel=1e-5)
    with pytest.raises(UserError, match=r"(?s)without tokens.*leave empty texts out"):
        run.loss("")


def test_logits_are_those_of_the_loss(run_config: Config) -> None:
    run = open_run(run_config.run.run_dir)
    ids = run.encode("line 3 of 9\n")
    assert (ids[0], len(ids)) == (tiny.BOS, 13)
    logits = run.logits(ids)
    assert (logits.shape, logits.dtype) == ((13, tiny.VOCAB), np.float32)
    found = jax.jit(partial(token_losses, run.learner))(run.params, ids[None])
    losses, _, normaliser = (np.asarray(x)[0] for x in found)
    np.testing.assert_allclose(jax.nn.logsumexp(logits[:-1], axis=-1), normaliser, rtol=1e-5)
    chosen = logits[np.arange(12), ids[1:]]
    np.testing.assert_allclose(normaliser - chosen, losses, rtol=1e-5)
    assert run.loss("line 3 of 9\n") == pytest.approx(losses.mean(), rel=1e-5)
    for wrong in ([], [0] * (LENGTH + 1), [tiny.VOCAB], [-1], [[0, 1]]):
        with pytest.raises(UserError, match=rf"(?s)one axis of 1 to {LENGTH} ids, each from 0 to"):
            inspect.unwrap(type(run).logits)(run, wrong)  # without the types that tests check


def test_text_is_whole_characters_up_to_the_documents_end(
    run_config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [97, *"€".encode(), 0xE2, 98, tiny.BOS, 99]  # 0xE2 begins a character and ends none
    monkeypatch.setattr(trained, "make_generate", lambda *_: lambda *_: iter(tokens))
    assert sample_command(run_dir=run_config.run.run_dir, chars=9) == 0
    assert capsys.readouterr().out == "a€\N{REPLACEMENT CHARACTER}b\n"
    assert sample_command(run_dir=run_config.run.run_dir, chars=2) == 0
    assert capsys.readouterr().out == "a€\n"


def test_evaluate_prints_the_bits_per_byte_of_the_summary(
    run_config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(run_dir=run_config.run.run_dir) == 0
    summary = json.loads((Path(run_config.run.run_dir) / "summary.json").read_text())
    printed = capsys.readouterr().out
    assert f"{summary['heldout_bits_per_byte']:.4g}" in printed
    assert summary["corpus_sha256"] in printed
    assert len(summary["baselines"]) == 4
    assert all(f"{figure:.4g}" in printed for figure in summary["baselines"].values())
    monkeypatch.setattr(Split, "lossless", False)
    assert evaluate(run_dir=run_config.run.run_dir) == 0
    assert "held-out bits per byte" not in capsys.readouterr().out


def test_reading_passes_over_a_damaged_checkpoint_and_touches_nothing(
    run_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(run_config.run.run_dir) / "checkpoints"
    (folder / "00000009").mkdir()  # a save under way
    manifest = folder / "00000002" / "manifest.json"
    sound = manifest.read_text()
    manifest.write_text(sound.replace('"step": 2', '"step": 3'))
    before = sorted(folder.rglob("*"))
    try:
        assert open_run(run_config.run.run_dir).step == 1
        assert sorted(folder.rglob("*")) == before
    finally:
        manifest.write_text(sound)


def test_opening_nothing_says_how_to_train(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)without a checkpoint.*--run-dir"):
        open_run(str(tmp_path))
