"""Stage: the teacher audit. Before anything is distilled: does the teacher beat the controls, and where? Do those who teach?

By the one evaluator, on validation, overall and by slice (`recommender/slices.py`); on a sample of validation's users also how
much its lists share with theirs, how well its probabilities are calibrated (over the whole catalogue, as the targets hold them,
items already seen included), and the temperature that calibrates them. A teacher that does not win is reported as such. Where
others teach than the teacher alone, their mean is judged beside it. `worse_slices` is where distillation that follows the audit
does not listen to who teaches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from distill.calibration import Calibration, calibrate
from distill.device import device, rows_at_once
from distill.evaluation import RANKS, kept_ranks
from distill.members import Ensemble, Member, MemberRecommender, after_last, open_member
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


def build_audit(
    teacher: Artifact,
    others: Mapping[str, Artifact],
    sequences: Sequences,
    draft: Draft,
    members: Sequence[tuple[float, Artifact]] = (),
) -> None:
    """Compare the teacher with `others` (baselines and control arms) and write audit.json.

    `members`, with their weights, are those who teach, where that is not the teacher alone: their mean is judged beside it.
    """
    ndcg_of = {name: _validation_ndcg(other, sequences) for name, other in others.items()}
    in_slice = slices(sequences, "validation")
    sample = _Sample.drawn(others, sequences)
    found = {"teacher": _judged(_validation_ndcg(teacher, sequences), open_member(teacher), ndcg_of, in_slice, sample)}
    if members:
        ensemble = Ensemble([(weight, open_member(artifact)) for weight, artifact in members])
        rows = rows_at_once(sequences.num_items, cpu=_ROWS, gpu=512)
        ndcg_U = ndcg(evaluate(MemberRecommender(ensemble), sequences, "validation", batch_size=rows), 10)
        found["ensemble"] = _judged(ndcg_U, ensemble, ndcg_of, in_slice, sample)
    counts = {"all": len(sequences.evaluated_users), **{name: int(mask_U.sum()) for name, mask_U in in_slice.items()}}
    told = {"slices": counts, "others": {name: float(own_U.mean()) for name, own_U in ndcg_of.items()}, **found}
    (draft.path / AUDIT).write_text(json.dumps(told, indent=1))
    draft.metrics |= {
        who: {
            "validation_ndcg_at_10": own["validation_ndcg_at_10"],
            "beats": [name for name, by_slice in own["over"].items() if by_slice["all"] and by_slice["all"]["ci95"][0] > 0],
            **own["calibration"],
        }
        for who, own in found.items()
    }


def _judged(
    ndcg_U: np.ndarray,
    member: Member,
    ndcg_of: Mapping[str, np.ndarray],
    in_slice: Mapping[str, np.ndarray],
    sample: _Sample,
) -> dict[str, Any]:
    """What is known of one who teaches."""
    judged = {label: mask_U for label, mask_U in in_slice.items() if mask_U.sum() >= _MIN_SLICE}
    over = {
        name: {
            "all": _compare(ndcg_U, other_U),
            **{label: _compare(ndcg_U[mask_U], other_U[mask_U], len(judged)) for label, mask_U in judged.items()},
        }
        for name, other_U in ndcg_of.items()
    }
    return {
        "validation_ndcg_at_10": float(ndcg_U.mean()),
        "over": over,
        "calibration": asdict(sample.calibration(member)),
        f"overlap_at_{EVALUATION_K}": sample.shared(member),
    }


@opens
def tell(audit: Artifact) -> None:
    """Say what was found: overall and by slice, against each of the others."""
    told = read_json(audit.file(AUDIT))
    judged = {who: told[who]["validation_ndcg_at_10"] for who in ("teacher", "ensemble") if told.get(who)}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in (judged | told["others"]).items())
    console.say(f"audit: validation NDCG@10: {shown}")
    for who in ("teacher", "ensemble"):
        if not (found := told.get(who)):
            continue
        for name, by_slice in found["over"].items():
            if overall := by_slice["all"]:
                console.say(f"audit: {who} over {name}: NDCG@10 {_shown(overall)}")
            sliced = {label: own for label, own in by_slice.items() if label != "all" and own}
            if sliced:
                console.say(f"audit:   in {', '.join(f'{label} {_shown(own)}' for label, own in sliced.items())}")
        shared = ", ".join(f"{share:.0%} with {name}" for name, share in found[f"overlap_at_{EVALUATION_K}"].items())
        console.say(f"audit: of the {who}'s top {EVALUATION_K} it shares {shared}")
        ece, better, temperature = (found["calibration"][name] for name in ("ece", "ece_at_temperature", "temperature"))
        console.say(f"audit: its confidence is off by {ece:.3f} (ECE), by {better:.3f} at temperature {temperature:.2f}")


def _interval(difference: Mapping[str, Any]) -> list[float]:
    """Of a slice that of all slices together: of several equal ones, one would else be told apart by chance too often."""
    return difference.get("ci95_of_family", difference["ci95"])


def _verdict(difference: Mapping[str, Any]) -> str:
    low, high = _interval(difference)
    return "wins" if low > 0 else "loses" if high < 0 else ""


def _shown(difference: Mapping[str, Any]) -> str:
    low, high = _interval(difference)
    return f"{difference['relative']:+.1%} [{low:+.1%}, {high:+.1%}] ({_verdict(difference) or 'no difference shown'})"


@opens
def worse_slices(audit: Artifact, than: str = "control-text") -> list[str]:
    """The slices in which whoever teaches is shown to be worse than `than`."""
    told = read_json(audit.file(AUDIT))
    by_slice = told.get("ensemble", told["teacher"])["over"][than]
    return [label for label, found in by_slice.items() if label != "all" and found and _verdict(found) == "loses"]


@dataclass(frozen=True)
class _Sample:
    """Users of validation whose probabilities and lists are looked at, and the others' lists for them."""

    histories: list[np.ndarray]
    target_U: np.ndarray
    lists: dict[str, np.ndarray]  # int64[U, K], -1 where a list is not full

    @classmethod
    def drawn(cls, others: Mapping[str, Artifact], sequences: Sequences) -> _Sample:
        users = sequences.evaluated_users
        count = max(min(len(users), _SAMPLE, _MAX_SCORES // sequences.num_items), 1)
        users = np.sort(np.random.default_rng(0).permutation(users)[:count])
        histories, lists = [sequences.history(u, "validation") for u in users], {}
        for name, other in others.items():
            recommender = load_baseline(other) if name in BASELINES else StudentRecommender(load_student(other))
            top_UK = recommend_all(recommender, histories, EVALUATION_K)
            lists[name] = np.where(top_UK > 0, top_UK, -1)
        return cls(histories, sequences.targets(users, "validation"), lists)

    def calibration(self, member: Member) -> Calibration:
        parts = [pad_left(self.histories[row : row + _ROWS]) for row in range(0, len(self.histories), _ROWS)]
        log_probability_UI = torch.cat([after_last(member, torch.from_numpy(part).to(device())).cpu() for part in parts])
        return calibrate(log_probability_UI.log_softmax(-1), torch.from_numpy(self.target_U).long() - 1)

    def shared(self, member: Member) -> dict[str, float]:
        """The share of the member's lists that each of the others has as well."""
        own_UK = recommend_all(MemberRecommender(member), self.histories, EVALUATION_K)
        return {name: float(overlap(top_UK, own_UK).mean()) for name, top_UK in self.lists.items()}


def _compare(new_U: np.ndarray, old_U: np.ndarray, family: int = 1) -> dict[str, Any] | None:
    difference = paired_relative_difference(new_U, old_U, family=family)
    return {"users": len(new_U), **difference} if difference else None


def _validation_ndcg(artifact: Artifact, sequences: Sequences) -> np.ndarray:
    if RANKS in artifact.manifest["files"]:
        return ndcg(kept_ranks(artifact, "validation"), 10)
    return ndcg(evaluate(load_baseline(artifact), sequences, "validation"), 10)
