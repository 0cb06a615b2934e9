"""What is declared beside the parameters of both backbones acts: shardings, labels and decay."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ..config import ModelConfig
from ..run_config import MeshConfig
from ..runtime.sharding import check_divisible, make_mesh, named
from ..training.axes import spec
from ..training.layers import annotation, state_specs
from ..training.optim import make_optimizer
from ..training.optim_config import OptimConfig
from .networks import CONFIGS, INPUTS, assert_close, filled, forward, make, names, plain

both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@both
def test_eight_devices_compute_what_one_does(config: ModelConfig) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    parameters, declared = filled(config), make(config)[1]
    specs = state_specs(declared, parameters)
    check_divisible(parameters, specs, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(parameters, named(specs, mesh))
        inputs = [jax.device_put(x, named(spec("batch"), mesh)) for x in INPUTS[:4]]
        out = forward(config, placed, *inputs, None)
    assert out.sharding.spec[0] == ("data", "fsdp")
    expected = forward(config, parameters)
    assert_close(out, expected, atol=1e-5 * float(jnp.abs(expected).max()))


MATRIX, LAST = P("fsdp", "tensor"), P("tensor", "fsdp")
SPECS = {
    "out": P("fsdp", None),
    "registers": P(None, None),
    "embed": P(None, "fsdp"),
    "modulation/matrix": MATRIX,
    "modulation/bias": P(None),
    "condition/noise_in": MATRIX,
    "condition/noise_out": LAST,
    "condition/label": P(None, None),
    "condition/augment": P(None, "fsdp"),
}
ATTENTION = dict.fromkeys(("query", "key", "value"), MATRIX) | {"out": LAST}
ATTENTION |= dict.fromkeys(("query_norm", "key_norm"), P(None))
BLOCK = {"gate": MATRIX, "up": MATRIX, "down": LAST}
BLOCK |= {"modulation/matrix": MATRIX, "modulation/bias": P(None)}
BLOCK |= {f"attention/{name}": found for name, found in ATTENTION.items()}


def test_shardings_of_a_transformer() -> None:
    found = names_of_specs("dit")
    stacked = {f"blocks/{name}": P(None, *found) for name, found in BLOCK.items()}
    assert found == SPECS | stacked


def test_shardings_of_a_unet() -> None:
    found = names_of_specs("unet")
    for name, places in found.items():
        last = name.rpartition("/")[2]
        if name.startswith("attention/"):
            assert places == ATTENTION[last]
        elif name in SPECS and name != "out":
            assert places == SPECS[name]
        elif last in ("gain", "bias", "attention_gain", "attention_bias", "out_gain", "out_bias"):
            assert places == P(None)
        else:
            expected = {
                "first": P(None, None, "fsdp", "tensor"),
                "second": P(None, None, "tensor", "fsdp"),
                "matrix": MATRIX,
                "shortcut": P("fsdp", None),
            }
            ends = {"first": P(None, None, None, "fsdp"), "out": P(None, None, "fsdp", None)}
            assert places == (ends[name] if name in ends else expected[last]), name


def names_of_specs(backbone: str) -> dict[str, P]:
    declared = make(CONFIGS[backbone])[1]
    specs = state_specs(declared, plain(declared))
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): s for path, s in leaves}


@both
def test_muon_takes_matrices_and_leaves_kernels_to_adam(config: ModelConfig) -> None:
    declared = make(config)[1]
    labels, decayed = annotation(declared, "label"), annotation(declared, "decay")
    settings = OptimConfig(optimizer="muon", learning_rate=0.01, horizon_steps=9, warmup_steps=0)
    optimizer = make_optimizer(replace(settings, weight_decay=0.0), labels, decayed)
    slopes = jax.tree.map(lambda w: jnp.where(w > 0, 1.0, -1.0), filled(config))
    updates, _ = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g))(slopes)
    for name, label in names(labels).items():
        moved, slope = names(updates)[name], names(slopes)[name]
        is_adam = np.allclose(moved, -0.01 * slope, rtol=1e-3)  # its first step
        assert is_adam == (label != "matrix"), name
        assert label in ("matrix", "embedding", "kernel", "vector")
        assert names(decayed)[name] == (label != "vector")
        assert (label == "kernel") == (slope.ndim == 4)
