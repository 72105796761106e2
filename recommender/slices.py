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
    users, count_I = sequences.evaluated_users, sequences.train_counts()
    by_count = np.argsort(-count_I[1:], kind="stable") + 1
    head = by_count[: max(round(_HEAD_SHARE * sequences.num_items), 1)]
    target_U = sequences.targets(users, part)
    length_U = np.array([len(sequences.history(u, part)) for u in users])
    found = {
        "head items": np.isin(target_U, head),
        "tail items": count_I[target_U] <= _TAIL,
        "cold items": count_I[target_U] == 0,
        "short histories": length_U <= _SHORT,
        "long histories": length_U >= _LONG,
    }
    return {name: member_U for name, member_U in found.items() if member_U.any()}
