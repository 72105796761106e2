"""What lists are like beyond accuracy: novelty, diversity, coverage, concentration, popularity, taste, and how two differ.

Shapes: U users, K items in a list (item_index 1..I, distinct), I items; tables over items have a row 0 for padding.
All values are per user, float64[U], unless they are of the whole catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SMOOTHING = 0.01
_USERS = 2048


def novelty(top_UK: np.ndarray, count_I: np.ndarray, num_users: int) -> np.ndarray:
    """Mean self-information -log2 p(i) in bits, p(i) = share of users who had i in training (Zhou et al., 2010).

    An item that nobody had counts as if one user had.
    """
    information_I = -np.log2(np.maximum(count_I, 1) / num_users)
    return information_I[top_UK].mean(axis=1)


def intra_list_diversity(top_UK: np.ndarray, vector_IZ: np.ndarray) -> np.ndarray:
    """Mean of 1 - cosine over the pairs of a list (Ziegler et al., 2005); items without a vector are as far as can be."""
    length_I1 = np.linalg.norm(vector_IZ, axis=1, keepdims=True)
    unit_IZ = np.divide(vector_IZ, length_I1, out=np.zeros(vector_IZ.shape), where=length_I1 > 0)
    k, pair_sums = top_UK.shape[1], []
    for some_UK in _blocks(top_UK):
        list_UKZ = unit_IZ[some_UK]
        pair_sums.append(np.square(list_UKZ.sum(axis=1)).sum(axis=1) - np.square(list_UKZ).sum(axis=(1, 2)))
    return 1 - np.concatenate(pair_sums) / (k * (k - 1))


def coverage(top_UK: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that stands in at least one list."""
    return len(np.unique(top_UK)) / num_items


def gini(top_UK: np.ndarray, num_items: int) -> float:
    """Gini index of how often each item is recommended: 0 = all alike, towards 1 = one item alone."""
    times_I = np.sort(np.bincount(top_UK.ravel(), minlength=num_items + 1)[1:])
    rank_I = np.arange(1, num_items + 1)
    return float(((2 * rank_I - num_items - 1) * times_I).sum() / (num_items * times_I.sum()))


def popularity_lift(top_UK: np.ndarray, histories: list[np.ndarray], count_I: np.ndarray) -> float:
    """How much more popular lists are than histories, relative, of means over users (Abdollahpouri et al., 2020)."""
    own = np.mean([count_I[history].mean() for history in histories if len(history)])
    return float(count_I[top_UK].mean() / own - 1) if own else 0.0


def miscalibration(top_UK: np.ndarray, histories: list[np.ndarray], share_IC: np.ndarray) -> np.ndarray:
    """KL(p || q') of a user's categories in the history (p) and in the list (q), q' = (1 - a) q + a p, a = .01 (Steck, 2018).

    `share_IC` splits each item over its categories (rows sum to 1, or to 0 without categories); a user without any: 0.
    """
    p_UC = _normalised(np.array([share_IC[history].sum(axis=0) for history in histories]))
    list_UC = np.concatenate([share_IC[some_UK].sum(axis=1) for some_UK in _blocks(top_UK)])
    q_UC = (1 - _SMOOTHING) * _normalised(list_UC) + _SMOOTHING * p_UC
    ratio_UC = np.divide(p_UC, q_UC, out=np.ones_like(p_UC), where=p_UC > 0)
    return (p_UC * np.log(ratio_UC)).sum(axis=1)


def category_shares(categories: Sequence[Sequence[str] | None]) -> np.ndarray:
    """float64[I + 1, C] for `miscalibration`, from the categories of the items in catalogue order."""
    names = {name: number for number, name in enumerate(sorted({name for own in categories for name in own or ()}))}
    share_IC = np.zeros((len(categories) + 1, len(names)))
    for item, own in enumerate(categories, 1):
        for name in own or ():
            share_IC[item, names[name]] += 1 / len(own or ())
    return share_IC


def overlap(top_UK: np.ndarray, other_UK: np.ndarray) -> np.ndarray:
    """Share of items that two lists of the same user have in common."""
    return (top_UK[:, :, None] == other_UK[:, None, :]).any(-1).mean(-1)


def rank_biased_overlap(top_UK: np.ndarray, other_UK: np.ndarray, p: float = 0.9) -> np.ndarray:
    """Agreement of two rankings, the top counting most: RBO_ext of Webber et al. (2010), equation 30; 1 = the same."""
    k = top_UK.shape[1]
    place = np.where(top_UK[:, :, None] == other_UK[:, None, :], np.arange(k)[:, None], k)
    other_place = np.where(top_UK[:, :, None] == other_UK[:, None, :], np.arange(k), -1)
    seen_at = np.maximum(place, other_place)  # the depth at which an item has come up in both
    depth_K = np.arange(1, k + 1)
    common_UK = np.stack([((other_place >= 0) & (seen_at < depth)).sum(axis=(1, 2)) for depth in depth_K], axis=1)
    agreement_UK = common_UK / depth_K
    return agreement_UK[:, -1] * p**k + (1 - p) / p * (agreement_UK * p**depth_K).sum(axis=1)


def kendall_tau(top_UK: np.ndarray, other_UK: np.ndarray) -> np.ndarray:
    """Rank correlation over the items two lists have in common: concordant less discordant pairs, over all (Kendall, 1938).

    NaN for a user whose lists share fewer than two items.
    """
    same_UKK = top_UK[:, :, None] == other_UK[:, None, :]
    place_UK = np.where(same_UKK.any(-1), same_UKK.argmax(-1), -1)  # in the other list
    first, second = np.triu_indices(top_UK.shape[1], 1)
    both_UP = (place_UK[:, first] >= 0) & (place_UK[:, second] >= 0)
    sign_UP = np.sign(place_UK[:, second] - place_UK[:, first]) * both_UP
    pairs_U = both_UP.sum(axis=1)
    return np.divide(sign_UP.sum(axis=1), pairs_U, out=np.full(len(top_UK), np.nan), where=pairs_U > 0)


def _blocks(top_UK: np.ndarray) -> list[np.ndarray]:
    """Lists of so many users at a time that a table's rows for them are no burden."""
    return np.split(top_UK, range(_USERS, len(top_UK), _USERS))


def _normalised(weight_UC: np.ndarray) -> np.ndarray:
    total_U1 = weight_UC.sum(axis=1, keepdims=True)
    return np.divide(weight_UC, total_U1, out=np.zeros_like(weight_UC), where=total_U1 > 0)
