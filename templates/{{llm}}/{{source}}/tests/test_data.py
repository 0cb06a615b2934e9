"""Rows hold every token once an epoch, and their order depends on nothing but seed and position."""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from ..data import Rows, heldout_rows, heldout_windows
from ..errors import UserError
from ..text.shards import Shard, Split
from ..training.batches import make_batches

BOS = 0
LENGTHS = st.lists(st.integers(1, 40), min_size=2, max_size=12)


def make_split(folder: Path, lengths: Sequence[int], per_shard: int = 3) -> Split:
    """Documents of BOS and so many tokens; no two tokens of the split but BOS are equal."""
    ids = itertools.count(1)
    documents = [[BOS, *itertools.islice(ids, length)] for length in lengths]
    shards = []
    for number, part in enumerate(itertools.batched(documents, per_shard)):
        tokens = np.concatenate(part).astype(np.uint16)
        # One name, one content: open shards stay mapped.
        name = f"{per_shard}-{number}-{'-'.join(map(str, lengths))}.npy"
        if not (folder / name).exists():
            np.save(folder / name, tokens)
        shards.append(Shard("train", len(tokens), len(part), 0, "", {name: ""}))
    ends = np.cumsum([len(document) for document in documents])
    shard_ends = np.cumsum([shard.tokens for shard in shards])
    starts = (np.append(0, x) for x in (shard_ends, ends))
    return Split(folder, tuple(shards), *starts, text_bytes=0, bos_id=BOS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """86 rows of 8 tokens."""
    lengths = [7 + 5 * n % 31 for n in range(30)]
    return Rows(make_split(tmp_path_factory.mktemp("rows"), lengths), 8, "segments")


def batches_of(rows: Rows, *, seed: int = 0, batch_size: int = 8, micro_batches: int = 1, on=None):
    on = on or SingleDeviceSharding(jax.devices()[0])
    make = make_batches(
        rows, seed=seed, batch_size=batch_size, micro_batches=micro_batches, sharding=on
    )
    return lambda cursor: np.asarray(make(cursor))


@settings(max_examples=50, derandomize=True, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.data())
def test_the_stream_does_not_show_where_shards_meet(
    folder: Path, lengths: list[int], per_shard: int, data: st.DataObject
) -> None:
    split, whole = (make_split(folder, lengths, n) for n in (per_shard, 99))
    end = int(whole.shard_starts[-1])
    start = data.draw(st.integers(0, end))
    stop = data.draw(st.integers(start, end))
    got = split.read(start, stop, stop - start + 2)
    np.testing.assert_array_equal(got[:-2], whole.read(start, stop, stop - start))
    assert got[-2:].tolist() == [-1, -1]


@settings(max_examples=50, derandomize=True, deadline=None)
@given(LENGTHS, st.integers(1, 50))
def test_segments_predict_every_token_but_the_first_once(
    folder: Path, lengths: list[int], seq_len: int
) -> None:
    split = make_split(folder, lengths)
    end = int(split.shard_starts[-1])
    stream = split.read(0, end, end)
    rows = Rows(split, seq_len, "segments")
    table = np.stack([rows[i] for i in range(len(rows))])
    assert table.shape == (len(rows), seq_len + 1)
    targets = table[:, 1:].ravel()
    np.testing.assert_array_equal(targets[: end - 1], stream[1:])
    assert (targets[end - 1 :] == -1).all()
    np.testing.assert_array_equal(table[1:, 0], table[:-1, -1])
    assert rows.waste() == pytest.approx((targets == -1).mean())


@settings(max_examples=50, derandomize=True, deadline=None)
@given(LENGTHS, st.integers(1, 50))
def test_documents_rows_hold_one_document_and_every_token_once(
    folder: Path, lengths: list[int], seq_len: int
) -> None:
    split = make_split(folder, lengths)
    rows = Rows(split, seq_len, "documents")
    table = np.stack([rows[i] for i in range(len(rows))])
    assert (table[:, 0] == BOS).all()
    targets = table[:, 1:]
    text = targets[(targets != -1) & (targets != BOS)]
    assert text.tolist() == list(range(1, sum(lengths) + 1))
    assert (targets == BOS).sum() == len(lengths)  # the end of each is a target too
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for row in targets:
        found = row[row != -1]
        assert len(set(document_of[found[found != BOS] - 1])) <= 1
        assert BOS not in found[:-1]
    assert rows.waste() == pytest.approx((targets == -1).mean())


def test_each_epoch_is_another_permutation(rows: Rows) -> None:
    plain = sorted(rows[i].tolist() for i in range(len(rows)))
    read = batches_of(rows, batch_size=1)
    epochs = [[read(i + len(rows) * e)[0, 0].tolist() for i in range(len(rows))] for e in range(3)]
    assert all(sorted(epoch) == plain for epoch in epochs)
    other_seed = [batches_of(rows, seed=1, batch_size=1)(i)[0, 0].tolist() for i in range(9)]
    for one, two in itertools.combinations([*epochs, plain, other_seed], 2):
        assert one[:9] != two[:9]


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_order_does_not_depend_on_how_rows_are_grouped(
    rows: Rows, batch_size: int, micro_batches: int
) -> None:
    one = batches_of(rows, batch_size=1)
    many = batches_of(rows, batch_size=batch_size, micro_batches=micro_batches)
    for cursor in (0, 3, len(rows) - 2, 5 * len(rows) + 1):
        got = many(cursor)
        assert got.shape == (micro_batches, batch_size // micro_batches, rows.seq_len + 1)
        want = [one(cursor + i)[0, 0] for i in range(batch_size)]
        np.testing.assert_array_equal(got.reshape(batch_size, -1), want)


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)])
def test_order_does_not_depend_on_devices(rows: Rows, axes: tuple[int, int, int]) -> None:
    mesh = jax.make_mesh(axes, ("data", "fsdp", "tensor"), devices=jax.devices()[:8])
    sharding = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"), None))
    one = batches_of(rows, micro_batches=1)
    np.testing.assert_array_equal(batches_of(rows, on=sharding)(5), one(5))
    two = batches_of(rows, batch_size=16, micro_batches=2, on=sharding)
    np.testing.assert_array_equal(two(5)[1], one(13)[0])


def test_a_process_reads_the_rows_of_its_devices_once(rows: Rows) -> None:
    read: list[int] = []

    class Counted(Rows):
        def __getitem__(self, row: int) -> np.ndarray:
            read.append(row)
            return super().__getitem__(row)

    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), devices=jax.devices()[:8])
    counted = Counted(rows.split, rows.seq_len, rows.packing)
    batches = make_batches(
        counted,
        seed=0,
        batch_size=8,
        micro_batches=1,
        sharding=NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"), None)),
    )
    read.clear()  # the first row, for its shape
    batch = batches(0)
    assert len(read) == len(set(read)) == 8
    assert {shard.data.shape for shard in batch.addressable_shards} == {(1, 2, 9)}


def test_resuming_and_threads_change_nothing(rows: Rows) -> None:
    straight = batches_of(rows)
    cursors = list(range(0, 400, 8))
    want = [straight(cursor) for cursor in cursors]
    np.testing.assert_array_equal(batches_of(rows)(cursors[17]), want[17])
    shared = batches_of(rows)
    with ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(shared, cursors * 2), want * 2, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_less_text_than_a_batch_is_refused(rows: Rows) -> None:
    with pytest.raises(UserError, match=rf"{len(rows)} rows to train on(.|\n)*{len(rows) + 1}"):
        batches_of(rows, batch_size=len(rows) + 1)
    assert batches_of(rows, batch_size=len(rows))(0).shape[1] == len(rows)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.data())
@pytest.mark.parametrize("packing", ["segments", "documents"])
def test_heldout_windows_score_every_token_once_with_context(
    folder: Path, packing: str, lengths: list[int], seq_len: int, data: st.DataObject
) -> None:
    split = make_split(folder, lengths)
    stride = data.draw(st.integers(1, seq_len))
    windows = heldout_windows(split.document_starts, seq_len, stride)
    tokens, scored = heldout_rows(split.read, BOS, windows, seq_len, packing)
    assert tokens.shape == (len(windows), seq_len + 1)
    assert scored.shape == (len(windows), seq_len)
    assert tokens[:, 1:][scored].tolist() == list(range(1, sum(lengths) + 1))
    document_of = np.append(-1, np.repeat(np.arange(len(lengths)), lengths))
    first_of = np.append(1, 1 + np.cumsum(lengths))
    for row, counts in zip(tokens, scored, strict=True):
        real = row[1:][row[1:] != -1]
        assert BOS not in real
        assert len(set(document_of[real])) == 1
        assert 0 < counts.sum() <= seq_len
        new = real[-counts.sum() :]
        np.testing.assert_array_equal(row[1:][counts], new)
        if new[0] == first_of[document_of[new[0]]]:
            assert row[0] == BOS
        else:
            assert counts.sum() <= stride
            assert np.argmax(counts) >= seq_len - stride
        assert packing == "segments" or row[0] == BOS
