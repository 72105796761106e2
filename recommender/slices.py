"""Slices of the evaluated users: by how much is known of the target item, and of the user.

Head: the 20% of items with most training interactions; tail: at most 5; cold: none. Short history: at most 5 items; long: at
least 20.
"""

from __future__ import annotations

import numpy as np

from recommender.split import Sequences

_HEAD_SHARE, _TAIL, _SHORT, _LONG = 0.2, 5, 5, 20


def slices(sequences: Sequences, part: str = "test") -> dict[str, np.ndarray]:
    """Name -> bool[U] over the evaluated users; slices without a user are left out."""
    users = sequences.evaluated_users
    length_U = np.array([len(sequences.history(u, part)) for u in users])
    found = _of(sequences, sequences.targets(users, part), length_U)
    return {name: member_U for name, member_U in found.items() if member_U.any()}


def position_slices(sequences: Sequences, ends: bool = False) -> dict[str, np.ndarray]:
    """The same of training positions (numbered as in `recommender/windows.py`), each's own label not counted: bool[P].

    An end, which has no label, is in no slice of items.
    """
    trained = [sequences.train(u) for u in range(sequences.num_users)]
    label_P = np.concatenate([sequence[1:] for sequence in trained])
    length_P = np.concatenate([np.arange(1, max(len(sequence), 1)) for sequence in trained])
    if ends:
        whole_E = np.array([len(sequence) for sequence in trained if len(sequence)])
        label_P, length_P = np.append(label_P, np.zeros_like(whole_E)), np.append(length_P, whole_E)
    return _of(sequences, label_P, length_P, own=1)


def _of(sequences: Sequences, target_N: np.ndarray, length_N: np.ndarray, own: int = 0) -> dict[str, np.ndarray]:
    count_I = sequences.train_counts()
    by_count = np.argsort(-count_I[1:], kind="stable") + 1
    head = by_count[: max(round(_HEAD_SHARE * sequences.num_items), 1)]
    known_N = target_N > 0
    return {
        "head items": np.isin(target_N, head),
        "tail items": known_N & (count_I[target_N] - own <= _TAIL),
        "cold items": known_N & (count_I[target_N] - own == 0),
        "short histories": length_N <= _SHORT,
        "long histories": length_N >= _LONG,
    }
