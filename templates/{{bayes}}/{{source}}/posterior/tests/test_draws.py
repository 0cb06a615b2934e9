"""What is stored is what was drawn, after any cut; ArviZ and xarray read it as it is."""

from dataclasses import replace
from pathlib import Path

import arviz_stats
import jax
import numpy as np
import pytest
import xarray
import zarr
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...records import store
from ..draws import DrawStore, Layout, lay_out, read_draws

LAYOUT = Layout(
    arrays={
        "posterior/theta": ((2,), np.float32, ("school",)),
        "posterior/mu": ((), np.float32, ()),
        "sample_stats/lp": ((), np.float32, ()),
        "sample_stats/diverging": ((), np.bool_, ()),
    },
    coords={"school": ["A", "Ω"]},
    chains=4,
    chunk=3,
    warmup_steps=2,
    steps=6,
    attributes={"model": "m"},
)


def outputs(step: int, shards: int = 1) -> dict[str, jax.Array]:
    """Draws that differ in each place and step, split over devices by chains."""
    mesh = Mesh(np.array(jax.devices()[:shards]), ("chains",))
    sharding = NamedSharding(mesh, PartitionSpec("chains"))

    def array(shape: tuple[int, ...], dtype: type) -> jax.Array:
        values = step * 100 + np.arange(np.prod((4, 3, *shape))).reshape(4, 3, *shape)
        return jax.device_put((values % 2 if dtype is np.bool_ else values).astype(dtype), sharding)

    return {name: array(shape, dtype) for name, (shape, dtype, _) in LAYOUT.arrays.items()}


def filled(folder: Path, steps: range, layout: Layout = LAYOUT, shards: int = 1) -> DrawStore:
    sink = DrawStore(folder, layout)
    sink.cut(steps.start - 1)
    for step in steps:
        sink.add(step, outputs(step, shards))
        sink.write(step)
    sink.durable()
    return sink


def expected(steps: range) -> dict[str, np.ndarray]:
    found = [outputs(step) for step in steps]
    return {n: np.concatenate([np.asarray(o[n]) for o in found], axis=1) for n in found[0]}


def assert_holds(folder: Path, steps: range) -> None:
    tree = read_draws(folder)
    for name, values in expected(steps).items():
        np.testing.assert_array_equal(tree[name].values, values, err_msg=name)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_what_was_drawn_is_read_without_warm_up(tmp_path: Path, shards: int) -> None:
    sink = filled(tmp_path, range(1, 7), shards=shards)
    assert_holds(tmp_path, range(3, 7))
    assert sink.read()["posterior/theta"].shape == (12, 4, 2)
    tree = read_draws(tmp_path)
    assert tree.attrs["model"] == "m"
    assert tree["posterior/theta"].dims == ("chain", "draw", "school")
    assert tree["posterior/theta"].coords["school"].values.tolist() == ["A", "Ω"]
    assert tree["posterior/mu"].coords["draw"].values.tolist() == [*range(12)]
    assert float(arviz_stats.ess(tree, method="mean")["mu"]) > 0


def test_a_run_that_goes_on_shows_what_all_chains_have(tmp_path: Path) -> None:
    filled(tmp_path, range(1, 5))
    assert_holds(tmp_path, range(3, 5))
    (tmp_path / "sample_stats/lp/c/3/1").unlink()
    assert_holds(tmp_path, range(3, 4))


def test_a_cut_forgets_what_is_beyond_it(tmp_path: Path) -> None:
    filled(tmp_path, range(1, 7))
    sink = DrawStore(tmp_path, LAYOUT)
    sink.cut(4)
    assert_holds(tmp_path, range(3, 5))
    filled(tmp_path, range(5, 7))
    assert_holds(tmp_path, range(3, 7))
    DrawStore(tmp_path, LAYOUT).cut(1)  # in warm-up
    assert read_draws(tmp_path)["posterior"].sizes["draw"] == 0


def test_a_run_is_lengthened_and_shortened(tmp_path: Path) -> None:
    filled(tmp_path, range(1, 7))
    longer = replace(LAYOUT, steps=9)
    filled(tmp_path, range(7, 9), longer)
    assert_holds(tmp_path, range(3, 9))
    lay_out(tmp_path, longer, 18, 18)
    array = zarr.open_array(tmp_path / "posterior/theta")
    assert (array.shape, array.chunks) == ((4, 18, 2), (1, 3, 2))
    assert_holds(tmp_path, range(3, 9))


def test_xarray_opens_it_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    filled(tmp_path, range(1, 7))
    assert not [w for w in recwarn if "Zarr" in w.category.__name__]
    tree = xarray.open_datatree(tmp_path, engine="zarr")
    assert tree["posterior/mu"].shape == (4, 12)
    assert not [str(w.message) for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_a_disk_that_refuses_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = filled(tmp_path, range(1, 4))
    write = store.write

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left")

    monkeypatch.setattr(store, "write", refuse)
    sink.add(4, outputs(4))
    sink.write(4)
    with pytest.raises(OSError, match="No space"):
        sink.durable()
    monkeypatch.setattr(store, "write", write)
    sink.write(4)
    sink.durable()
    assert_holds(tmp_path, range(3, 5))
