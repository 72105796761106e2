"""Stage: the teacher audit. Before anything is distilled: does the teacher beat the controls, and where?

By the one evaluator, on validation, overall and by slice (`recommender/slices.py`). A teacher that does not win is reported as
such.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill.evaluation import RANKS, kept_ranks
from foundation import console
from foundation.artifact import Artifact, Draft
from recommender.baselines import load_baseline
from recommender.evaluate import evaluate
from recommender.metrics import ndcg, paired_relative_difference
from recommender.slices import slices
from recommender.split import Sequences

_MIN_SLICE = 30


def build_audit(teacher: Artifact, others: Mapping[str, Artifact], sequences: Sequences, draft: Draft) -> None:
    """Compare the teacher with `others` (baselines and control arms) and write audit.json."""
    teacher_U = _validation_ndcg(teacher, sequences)
    members = {"all": np.ones(len(teacher_U), bool), **slices(sequences, "validation")}
    comparisons = {
        name: {
            label: _compare(teacher_U[mask_U], other_U[mask_U])
            for label, mask_U in members.items()
            if label == "all" or mask_U.sum() >= _MIN_SLICE
        }
        for name, other_U in ((name, _validation_ndcg(other, sequences)) for name, other in others.items())
    }
    beaten = [name for name, by_slice in comparisons.items() if (overall := by_slice["all"]) and overall["ci95"][0] > 0]
    (draft.path / "audit.json").write_text(
        json.dumps({"slices": {k: int(v.sum()) for k, v in members.items()}, "teacher_over": comparisons}, indent=1)
    )
    draft.metrics |= {"beats": beaten, "teacher_validation_ndcg_at_10": float(teacher_U.mean())}
    for name, by_slice in comparisons.items():
        if overall := by_slice["all"]:
            low, high = overall["ci95"]
            verdict = "wins" if low > 0 else "loses" if high < 0 else "no difference shown"
            console.say(f"audit: teacher over {name}: NDCG@10 {overall['relative']:+.1%} [{low:+.1%}, {high:+.1%}] ({verdict})")


def _compare(new_U: np.ndarray, old_U: np.ndarray) -> dict[str, Any] | None:
    difference = paired_relative_difference(new_U, old_U)
    return {"users": len(new_U), **difference} if difference else None


def _validation_ndcg(artifact: Artifact, sequences: Sequences) -> np.ndarray:
    if RANKS in artifact.manifest["files"]:
        return ndcg(kept_ranks(artifact, "validation"), 10)
    return ndcg(evaluate(load_baseline(artifact), sequences, "validation"), 10)
