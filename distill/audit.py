"""Stage: the teacher audit. Before anything is distilled: does the teacher beat the controls, and where?

By the one evaluator, on validation, overall and by slice (`recommender/slices.py`); on a sample of validation's users also how
much its lists share with theirs, how well its probabilities are calibrated (over the whole catalogue, as the targets hold them,
items already seen included), and the temperature that calibrates them. A teacher that does not win is reported as such.
`worse_slices` is where distillation that follows the audit does not listen to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.calibration import Calibration, calibrate
from distill.device import device
from distill.evaluation import RANKS, kept_ranks
from distill.members import Member, TeacherMember
from distill.teacher import load_teacher, serving_teacher
from foundation import console
from foundation.artifact import Artifact, Draft, opens
from foundation.content import read_json
from recommender.baselines import BASELINES, load_baseline
from recommender.beyond import overlap
from recommender.evaluate import evaluate, recommend_all
from recommender.metrics import ndcg, paired_relative_difference
from recommender.ranking import EVALUATION_K, pad_left
from recommender.slices import slices
from recommender.split import Sequences
from recommender.student import StudentRecommender, load_student

AUDIT = "audit.json"
_MIN_SLICE = 30
_SAMPLE, _ROWS, _MAX_SCORES = 2048, 64, 1 << 26  # users, users at a time, and scores (256 MiB)


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
    calibration, shared = _on_a_sample(teacher, others, sequences)
    beaten = [name for name, by_slice in comparisons.items() if (overall := by_slice["all"]) and overall["ci95"][0] > 0]
    (draft.path / AUDIT).write_text(
        json.dumps(
            {
                "slices": {k: int(v.sum()) for k, v in members.items()},
                "teacher_over": comparisons,
                "calibration": asdict(calibration),
                f"overlap_at_{EVALUATION_K}": shared,
            },
            indent=1,
        )
    )
    draft.metrics |= {"beats": beaten, "teacher_validation_ndcg_at_10": float(teacher_U.mean()), **asdict(calibration)}
    for name, by_slice in comparisons.items():
        if overall := by_slice["all"]:
            low, high = overall["ci95"]
            verdict = "wins" if low > 0 else "loses" if high < 0 else "no difference shown"
            console.say(f"audit: teacher over {name}: NDCG@10 {overall['relative']:+.1%} [{low:+.1%}, {high:+.1%}] ({verdict})")
    told = ", ".join(f"{share:.0%} with {name}" for name, share in shared.items())
    console.say(f"audit: of the teacher's top {EVALUATION_K} it shares {told}")
    console.say(
        f"audit: its confidence is off by {calibration.ece:.3f} (ECE), by {calibration.ece_at_temperature:.3f} "
        f"at temperature {calibration.temperature:.2f}"
    )


@opens
def worse_slices(audit: Artifact, than: str = "control-text") -> list[str]:
    """The slices in which the teacher is shown to be worse than `than`."""
    by_slice = read_json(audit.file(AUDIT))["teacher_over"][than]
    return [label for label, found in by_slice.items() if label != "all" and found and found["ci95"][1] < 0]


def _on_a_sample(
    teacher: Artifact, others: Mapping[str, Artifact], sequences: Sequences
) -> tuple[Calibration, dict[str, float]]:
    """The teacher's calibration, and the share of its lists that each of the others has as well."""
    users = sequences.evaluated_users
    count = max(min(len(users), _SAMPLE, _MAX_SCORES // sequences.num_items), 1)
    users = np.sort(np.random.default_rng(0).permutation(users)[:count])
    histories, target_U = [sequences.history(u, "validation") for u in users], sequences.targets(users, "validation")
    opened = load_teacher(teacher)
    member = TeacherMember(opened)
    log_probability_UI = torch.cat([_after_last(member, histories[row : row + _ROWS]) for row in range(0, count, _ROWS)])
    lists = recommend_all(serving_teacher(opened), histories, EVALUATION_K)
    shared = {}
    for name, other in others.items():
        recommender = load_baseline(other) if name in BASELINES else StudentRecommender(load_student(other))
        other_UK = recommend_all(recommender, histories, EVALUATION_K)
        shared[name] = float(overlap(np.where(other_UK > 0, other_UK, -1), lists).mean())  # 0 fills a list up, and is no item
    return calibrate(log_probability_UI, torch.from_numpy(target_U).long() - 1), shared


def _after_last(member: Member, histories: list[np.ndarray]) -> Tensor:
    """Log-probabilities of what follows each history, float32[len(histories), I]."""
    history_BL = torch.from_numpy(pad_left(histories, member.max_length)).to(device())
    keep_BL = torch.zeros_like(history_BL, dtype=torch.bool)
    keep_BL[:, -1] = True
    return member.log_probabilities(history_BL, keep_BL).cpu()


def _compare(new_U: np.ndarray, old_U: np.ndarray) -> dict[str, Any] | None:
    difference = paired_relative_difference(new_U, old_U)
    return {"users": len(new_U), **difference} if difference else None


def _validation_ndcg(artifact: Artifact, sequences: Sequences) -> np.ndarray:
    if RANKS in artifact.manifest["files"]:
        return ndcg(kept_ranks(artifact, "validation"), 10)
    return ndcg(evaluate(load_baseline(artifact), sequences, "validation"), 10)
