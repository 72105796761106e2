"""The protocol's split, and the windows cut from its training part."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.data import DataError, Dataset
from recommender.split import Sequences, build_sequences, require_usable
from recommender.windows import TrainingWindows


def dataset(rows: list[tuple[str, str, int | None]], num_items: int = 9) -> Dataset:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(1, num_items + 1)], "title": [""] * num_items})
    return Dataset(pl.DataFrame(rows, schema=schema, orient="row"), items)


def of(*histories: list[int]) -> Sequences:
    """Sequences with the given item_index histories."""
    offsets = np.cumsum([0, *map(len, histories)])
    return Sequences(
        [f"u{n}" for n in range(len(histories))],
        [f"i{n}" for n in range(1, 99)],
        offsets,
        np.concatenate(histories).astype(np.int32),
    )


def test_order_is_user_time_then_file_order() -> None:
    rows = [("b", "i1", 5), ("a", "i2", 9), ("a", "i3", 1), ("a", "i1", 9), ("a", "i4", 9), ("b", "i2", 5)]
    sequences = build_sequences(dataset(rows))
    assert sequences.user_ids == ["a", "b"]
    assert sequences.user(0).tolist() == [3, 2, 1, 4]
    assert sequences.user(1).tolist() == [1, 2]


def test_without_timestamps_file_order_counts() -> None:
    assert build_sequences(dataset([("a", "i3", None), ("a", "i1", None), ("a", "i2", None)])).user(0).tolist() == [3, 1, 2]


def test_repeats_keep_the_first() -> None:
    assert build_sequences(dataset([("a", "i1", 1), ("a", "i2", 2), ("a", "i1", 3)])).user(0).tolist() == [1, 2]


def test_a_large_table_keeps_users_in_order_and_ties_in_file_order() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"u{u:03d}", f"i{item + 1}", 7) for u in rng.permutation(400) for item in rng.permutation(60)]
    order = rng.permutation(len(rows))
    sequences = build_sequences(dataset([rows[i] for i in order], num_items=60))
    assert sequences.user_ids == [f"u{u:03d}" for u in range(400)]
    assert sequences.items.dtype == np.int32
    expected: dict[str, list[int]] = {}
    for i in order:
        expected.setdefault(rows[i][0], []).append(int(rows[i][1][1:]))
    assert [sequences.user(u).tolist() for u in range(400)] == [expected[user] for user in sequences.user_ids]


def test_histories_before_their_targets() -> None:
    sequences = of([1, 2, 3, 4, 5, 6, 7])
    assert sequences.history(0, "validation").tolist() == [1, 2, 3, 4, 5]
    assert sequences.history(0, "test").tolist() == [1, 2, 3, 4, 5, 6]
    counts = sequences.train_counts()
    assert (counts.dtype, len(counts), counts.sum()) == (np.int64, sequences.num_items + 1, 5)


def test_the_smallest_usable_data() -> None:
    require_usable(of([1, 2, 3, 4]))
    sequences = of([1, 2, 3, 4])
    with pytest.raises(DataError, match="has 20 items; ranking the top 20 needs more"):
        require_usable(Sequences(sequences.user_ids, sequences.item_ids[:20], sequences.offsets, sequences.items))
    with pytest.raises(DataError, match=r"^no user has two items left for training after the last two are set apart$"):
        require_usable(of([1, 2, 3]))


def test_leave_one_out() -> None:
    sequences = of([1, 2, 3, 4], [5, 6], [7])
    assert sequences.evaluated_users.tolist() == [0]
    assert sequences.train(0).tolist() == [1, 2]
    assert sequences.train(1).tolist() == [5, 6]
    assert sequences.history(0, "validation").tolist() == [1, 2]
    assert sequences.history(0, "test").tolist() == [1, 2, 3]
    users = sequences.evaluated_users
    assert (sequences.targets(users, "validation").tolist(), sequences.targets(users, "test").tolist()) == ([3], [4])
    assert sequences.train_counts()[[1, 2, 3, 4, 5, 6, 7]].tolist() == [1, 1, 0, 0, 1, 1, 1]


def test_a_sample_of_users_is_evaluated() -> None:
    whole = of(*[[user + 1, user + 2, user + 3] for user in range(20)], [1, 2])
    assert len(whole.evaluated_users) == 20
    some = replace(whole, max_evaluated=7).evaluated_users.tolist()
    assert len(set(some)) == 7 and sorted(some) == some and set(some) < set(range(20))
    assert replace(whole, max_evaluated=7).evaluated_users.tolist() == some
    assert replace(whole, max_evaluated=20).evaluated_users.tolist() == list(range(20))
    assert replace(whole, max_evaluated=7).targets_sha256() != whole.targets_sha256()


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (Sequences(["u"], ["i1", "i2"], np.array([0, 2]), np.array([1, 2])), "has 2 items"),
        (of([1, 2], [3]), "no user has 3 different items"),
        (of([1, 2, 3]), "no user has two items left"),
    ],
)
def test_data_too_small_is_refused_before_training(sequences: Sequences, message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_usable(sequences)


def test_targets_digest_names_users_and_items() -> None:
    digest = hashlib.sha256(b"u0\ti3\nu2\ti9\n").hexdigest()
    assert (
        of([1, 2, 3], [4], [5, 6, 7, 9]).targets_sha256() == of([1, 2, 3], [4], [5, 6, 7, 9]).targets_sha256("test") == digest
    )
    assert of([1, 2, 3], [4], [5, 6, 7, 9]).targets_sha256("validation") != digest
    one, other = of([1, 2, 3]), of([1, 2, 4])
    assert one.targets_sha256() != other.targets_sha256()
    assert one.targets_sha256() == of([2, 1, 3]).targets_sha256()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(2, 9), st.integers(1, 5), st.integers(0, 3))
def test_windows_cover_every_training_label_once(lengths: list[int], max_length: int, batch_size: int, epoch: int) -> None:
    sequences = of(*[list(range(1, n + 1)) for n in lengths])
    windows = TrainingWindows(sequences, max_length)
    for batches in (windows.epoch(epoch, batch_size, seed=0), list(windows.overlapping(batch_size))):
        positions, pairs = [], []
        for batch in batches:
            keep = batch.label_BL > 0
            assert batch.history_BL.shape[1] <= max_length
            assert ((batch.position_BL > 0) == keep).all()
            assert (batch.label_BL[keep] == batch.history_BL[keep] + 1).all()
            positions += batch.position_BL[keep].tolist()
            pairs += list(zip(batch.position_BL[keep].tolist(), batch.label_BL[keep].tolist(), strict=True))
        assert sorted(positions) == list(range(1, windows.num_positions + 1))
        expected = [label for u in range(len(lengths)) for label in sequences.train(u)[1:].tolist()]
        assert [label for _, label in sorted(pairs)] == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(2, 9), st.integers(1, 5))
def test_ends_are_positions_without_a_label(lengths: list[int], max_length: int, batch_size: int) -> None:
    sequences = of(*[list(range(1, n + 1)) for n in lengths])
    plain, windows = TrainingWindows(sequences, max_length), TrainingWindows(sequences, max_length, ends=True)
    last_items = [sequences.train(u)[-1] for u in range(len(lengths)) if len(sequences.train(u))]
    assert (plain.num_positions, windows.num_labels) == (plain.num_labels, plain.num_labels)
    assert windows.num_positions == plain.num_labels + len(last_items)
    for batches in (windows.epoch(1, batch_size, seed=0), list(windows.overlapping(batch_size))):
        found = {}
        for batch in batches:
            assert batch.history_BL.shape[1] <= max_length and len(batch) == (batch.position_BL > 0).sum()
            assert ((batch.label_BL > 0) == ((batch.position_BL > 0) & (batch.position_BL <= plain.num_labels))).all()
            for row, place in np.argwhere(batch.position_BL > 0):
                known = batch.history_BL[row, : place + 1]
                assert batch.position_BL[row, place] not in found
                found[int(batch.position_BL[row, place])] = known[known > 0].tolist(), int(batch.label_BL[row, place])
        assert sorted(found) == list(range(1, windows.num_positions + 1))
        assert [found[plain.num_labels + 1 + e][0][-1] for e in range(len(last_items))] == last_items
        expected = [label for u in range(len(lengths)) for label in sequences.train(u)[1:].tolist()]
        assert [found[position][1] for position in range(1, plain.num_labels + 1)] == expected
    assert list(found) == sorted(found), "overlapping windows come in order"
    contexts = [found[plain.num_labels + 1 + e][0] for e in range(len(last_items))]
    assert contexts == [list(range(max(1, n - max_length + 1), n + 1)) for n in last_items], "an end has its whole window"


def test_overlapping_windows_are_in_order_and_have_context() -> None:
    windows = TrainingWindows(of(list(range(1, 43))), max_length=10)
    batches = list(windows.overlapping(3))
    positions = np.concatenate([batch.position_BL[batch.label_BL > 0] for batch in batches])
    assert positions.tolist() == list(range(1, 40))
    for batch in batches:
        for history_L, label_L in zip(batch.history_BL, batch.label_BL, strict=True):
            first = np.flatnonzero(label_L)[0]
            known = (history_L[: first + 1] > 0).sum()
            assert known >= min(6, label_L[first] - 1)


def test_epochs_differ_and_repeat() -> None:
    windows = TrainingWindows(of(*[list(range(1, 30))] * 4), max_length=8)
    one, same, other = windows.epoch(0, 2, 5), windows.epoch(0, 2, 5), windows.epoch(1, 2, 5)
    assert all((a.history_BL == b.history_BL).all() for a, b in zip(one, same, strict=True))
    assert any(
        a.history_BL.shape != b.history_BL.shape or (a.history_BL != b.history_BL).any()
        for a, b in zip(one, other, strict=False)
    )


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_file_with_distinct_times_gives_the_same_split(seed: int) -> None:
    rows = [(f"u{u}", f"i{1 + (3 * u + t) % 9}", t) for u in range(5) for t in range(6)]
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    assert build_sequences(dataset(rows)).targets_sha256() == build_sequences(dataset(shuffled)).targets_sha256()
