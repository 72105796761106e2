"""What the lists of a variant are worth: accuracy, by slice, beyond accuracy, and what has drifted from the stage before.

Lists are int64[S, U, K] (seeds, evaluated users, items), ranks int64[S, U]; per-user values are averaged over seeds first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from recommender import beyond
from recommender.metrics import bootstrap_ci, hit_rate, ndcg, paired_relative_difference, reciprocal_rank
from recommender.slices import slices
from recommender.split import Sequences

CONTROLS = ("control-id", "control-text", "control-tuned", "control-ensemble-kd")
_LINEAR = (  # and what each is held against
    ("ease", "control-id"),
    *((text, other) for text in ("ease-text", "ease-words") for other in ("control-text", "ease")),
    ("ease-text", "ease-words"),
)
_STAGE_BEFORE = {
    "control-text": "control-id",
    "control-ensemble-kd": "control-text",
    "control-tuned": "control-text",
    "item-encoder": "control-text",
    "teacher": "control-text",
    "student": "teacher",
}
_UNCOMPRESSED = ("student", "student-pytorch", "student-aotinductor", "student-endpoint")
ALL = "all users"
_K = 10


def comparisons(ranks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Paired relative differences of NDCG@10 between variants, per-user means over the seeds that both have."""
    found = {}
    for new, old in _pairs(ranks):
        new_SU, old_SU = (ndcg(rank_SU, _K) for rank_SU in matched(ranks[new], ranks[old]))
        if difference := paired_relative_difference(new_SU.mean(axis=0), old_SU.mean(axis=0)):
            per_seed = new_SU.mean(axis=1) / np.maximum(old_SU.mean(axis=1), 1e-12) - 1
            found[f"{new} over {old}"] = {**difference, "per_seed": per_seed.tolist()}
    return found


def _pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Every variant with the stage before it, teacher and student with all they must beat, what is served with the teacher."""
    known = list(names)
    beaten = (*CONTROLS, "ease", "ease-text", "ease-words")
    to_controls = [*_LINEAR, *((taught, other) for taught in ("teacher", "student") for other in beaten)]
    before = [(name, stage) for name in known if (stage := stage_before(name))]
    served = [(name, "teacher") for name in known if name.startswith("student")]
    wanted = dict.fromkeys([*(p for p in before if p[0] in CONTROLS), *to_controls, *before, *served])
    return [(new, old) for new, old in wanted if new in known and old in known]


def stage_before(variant: str) -> str:
    """The variant that one was made from, or learnt after; empty for those that stand at a beginning."""
    served = (whole for whole in ("student", "teacher") if variant.startswith(f"{whole}-"))
    return _STAGE_BEFORE.get(variant) or next(served, "")


def matched(one_SX: np.ndarray, other_SX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, of the seeds that both have: the first ones, since all variants have the recipe's in its order."""
    num_seeds = min(len(one_SX), len(other_SX))
    return one_SX[:num_seeds], other_SX[:num_seeds]


def accuracy_figures(rank_SU: np.ndarray) -> dict[str, Any]:
    """HR, NDCG and MRR at 10 with their intervals, from test ranks of all seeds."""
    found: dict[str, Any] = {}
    for name, metric in (("hr", hit_rate), ("ndcg", ndcg), ("mrr", reciprocal_rank)):
        value_SU = metric(rank_SU, _K)
        found[f"{name}_at_10"] = float(value_SU.mean())
        found[f"{name}_at_10_ci95"] = list(bootstrap_ci(value_SU.mean(axis=0)))
    return found | {"ndcg_at_10_per_seed": ndcg(rank_SU, _K).mean(axis=1).tolist()}


def beside(rank_SU: np.ndarray, other_SU: np.ndarray, other: str) -> dict[str, Any]:
    """NDCG@10 of an arm with its interval, and what it is over the arm named `other`, paired, each user's mean over seeds."""
    own_U, other_U = (ndcg(ranks, _K).mean(axis=0) for ranks in (rank_SU, other_SU))
    over = paired_relative_difference(own_U, other_U)
    return {"ndcg_at_10": float(own_U.mean()), "ci95": list(bootstrap_ci(own_U)), f"over_{other.replace('-', '_')}": over}


@dataclass(frozen=True)
class Headline:
    """One line on what compression changed, whether it shows that a slice has lost, and of which slices it cannot say."""

    text: str
    lost: bool
    unknown: str = ""

    @property
    def whole(self) -> str:
        return "; ".join(filter(None, (self.text, self.unknown)))


def headlines(rows: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """For each compressed variant the change overall, and the slice that fared worst: one that surely lost before any other."""
    found = []
    for row in rows:
        compressed = stage_before(row["variant"]) in ("student", "teacher") and row["variant"] not in _UNCOMPRESSED
        if not compressed or not (own := row.get("drift", {}).get("ndcg_at_10", {})).get(ALL):
            continue
        told = {name: value for name, value in own.items() if value and name != ALL}
        text = f"{row['variant']}: NDCG@10 {percent(own[ALL])} overall"
        if told:
            worst = min(told, key=lambda name: (not _lost(told[name]), told[name]["relative"]))
            text += f"; worst slice: {worst} {percent(told[worst])}"
        unknown = [name for name, value in own.items() if not value]
        few = f"too few hits to tell: {', '.join(unknown)}" if unknown else ""
        found.append(Headline(text, any(map(_lost, [own[ALL], *told.values()])), few))
    return found


def _lost(difference: Mapping[str, Any]) -> bool:
    """Whether even the better end of the interval is a loss; of a slice, of that of all slices together."""
    return difference.get("ci95_of_family", difference["ci95"])[1] < 0


def percent(difference: Mapping[str, Any]) -> str:
    """A relative difference with its interval."""
    low, high = difference["ci95"]
    return f"{difference['relative']:+.1%} [{low:+.1%}, {high:+.1%}]"


@dataclass(frozen=True)
class Judge:
    """The data that lists are judged by: items are rows 1..I of `vector_IZ` and `share_IC`."""

    sequences: Sequences
    vector_IZ: np.ndarray
    share_IC: np.ndarray

    @classmethod
    def of(cls, sequences: Sequences, items: pl.DataFrame, vector_IZ: np.ndarray) -> Judge:
        """From the catalogue's table and its items' text vectors."""
        categories = items["categories"].to_list() if "categories" in items.columns else [None] * items.height
        return cls(sequences, vector_IZ, beyond.category_shares(categories))

    def beyond_accuracy(self, top_SUK: np.ndarray) -> dict[str, float]:
        """What the lists at 10 are like: means over users and seeds."""
        return {name: float(value.mean()) for name, value in self._beyond(top_SUK).items()}

    def _beyond(self, top_SUK: np.ndarray) -> dict[str, np.ndarray]:
        """Means over seeds: float64[U] of what every user has, float64[] of what the whole catalogue has."""
        sequences, count_I = self.sequences, self.sequences.train_counts()
        histories = self._histories
        tops = [top_UK[:, :_K] for top_UK in top_SUK]
        figures = {
            "novelty_bits": [beyond.novelty(top, count_I, sequences.num_users) for top in tops],
            "intra_list_diversity": [beyond.intra_list_diversity(top, self.vector_IZ) for top in tops],
            "coverage": [beyond.coverage(top, sequences.num_items) for top in tops],
            "gini": [beyond.gini(top, sequences.num_items) for top in tops],
            "popularity_lift": [beyond.popularity_lift(top, histories, count_I) for top in tops],
            "miscalibration": [beyond.miscalibration(top, histories, self.share_IC) for top in tops],
        }
        return {name: np.mean(values, axis=0) for name, values in figures.items()}

    @cached_property
    def _histories(self) -> list[np.ndarray]:
        return [self.sequences.history(u, "test") for u in self.sequences.evaluated_users]

    def by_slice(self, rank_SU: np.ndarray) -> dict[str, Any]:
        """NDCG@10 and HR@10 of each slice of users, with the interval of the former."""
        ndcg_U, hit_U = ndcg(rank_SU, _K).mean(axis=0), hit_rate(rank_SU, _K).mean(axis=0)
        return {
            name: {
                "users": int(member_U.sum()),
                "ndcg_at_10": float(ndcg_U[member_U].mean()),
                "ndcg_at_10_ci95": list(bootstrap_ci(ndcg_U[member_U])),
                "hr_at_10": float(hit_U[member_U].mean()),
            }
            for name, member_U in slices(self.sequences).items()
        }

    def drift(self, top_SUK: np.ndarray, rank_SU: np.ndarray, before_SUK: np.ndarray, before_SU: np.ndarray) -> dict[str, Any]:
        """How lists differ from those of the stage before: common items, order, paired NDCG@10 and HR@10, overall and by slice.

        A slice where too few users had a hit before says None: a ratio to almost nothing says nothing. What changed beyond
        accuracy is a difference, with its interval where every user has a value.
        """
        (top_SUK, before_SUK), (rank_SU, before_SU) = matched(top_SUK, before_SUK), matched(rank_SU, before_SU)
        pairs = list(zip(top_SUK, before_SUK, strict=True))
        metrics = {"ndcg_at_10": ndcg, "hr_at_10": hit_rate}  # of one target a user: the latter is recall
        members = slices(self.sequences)

        def compared(new_U: np.ndarray, old_U: np.ndarray) -> dict[str, Any]:
            by_slice = {
                name: paired_relative_difference(new_U[member_U], old_U[member_U], family=len(members))
                for name, member_U in members.items()
            }
            return {ALL: paired_relative_difference(new_U, old_U), **by_slice}

        new, old = self._beyond(top_SUK), self._beyond(before_SUK)
        tau_SU = np.stack([beyond.kendall_tau(own, other) for own, other in pairs])
        return {
            "overlap": float(np.mean([beyond.overlap(own, other).mean() for own, other in pairs])),
            "rank_biased_overlap": float(np.mean([beyond.rank_biased_overlap(own, other).mean() for own, other in pairs])),
            "kendall_tau": None if np.isnan(tau_SU).all() else float(np.nanmean(tau_SU)),
            **{
                name: compared(metric(rank_SU, _K).mean(axis=0), metric(before_SU, _K).mean(axis=0))
                for name, metric in metrics.items()
            },
            "beyond_accuracy": {
                name: {
                    "difference": float((value - old[name]).mean()),
                    "ci95": list(bootstrap_ci(value - old[name])) if value.ndim else None,
                }
                for name, value in new.items()
            },
        }
