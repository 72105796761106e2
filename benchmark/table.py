"""The result table of `recdistill distill`: accuracy of the baselines, the arms and the teacher, from the ranks they kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmark.accuracy import accuracy_figures, comparisons
from distill.evaluation import RANKS, kept_ranks
from foundation.artifact import Artifact
from recommender.baselines import load_baseline
from recommender.evaluate import evaluate
from recommender.metrics import ndcg
from recommender.split import Sequences

GEOMETRY = ("alignment", "uniformity_of_text", "uniformity_of_ids")  # where there is item text


def accuracy_table(rows: Mapping[str, Sequence[Artifact]], sequences: Sequences) -> tuple[str, dict[str, Any]]:
    """The table as text, and its figures; `rows` maps a variant to its artefacts, one per seed.

    All are of test but one NDCG@10 beside them: that on validation, which is what to choose a recipe by.
    """
    ranks, on_validation = (
        {name: np.array([_ranks(artifact, sequences, part) for artifact in artifacts]) for name, artifacts in rows.items()}
        for part in ("test", "validation")
    )
    figures = {
        name: accuracy_figures(rank_SU)
        | {"validation_ndcg_at_10": float(ndcg(on_validation[name], 10).mean())}
        | {"num_parameters": rows[name][0].metrics.get("num_parameters")}
        | {key: rows[name][0].metrics[key] for key in GEOMETRY if key in rows[name][0].metrics}
        for name, rank_SU in ranks.items()
    }
    found = comparisons(ranks)
    digest, num_seeds = sequences.targets_sha256(), len(rows["student"])
    width = max(map(len, figures)) + 2
    lines = [
        f"{'variant':<{width}}{'test NDCG@10 [95% CI]':<26}{'HR@10':<8}{'validation':<12}parameters",
        *(f"{name:<{width}}{_line(own)}" for name, own in figures.items()),
    ]
    lines += ["", "test NDCG@10, paired differences [95% CI]:"]
    lines += [f"  {name}: {d['relative']:+.1%} [{d['ci95'][0]:+.1%}, {d['ci95'][1]:+.1%}]" for name, d in found.items()]
    lines += [
        f"  item vectors of {name}: alignment of text and ID {own['alignment']:.2f}, uniformity of text "
        f"{own['uniformity_of_text']:.2f}, of IDs {own['uniformity_of_ids']:.2f}"
        for name, own in figures.items()
        if "alignment" in own
    ]
    lines += [f"{len(sequences.evaluated_users)} users, {num_seeds} seed(s), full ranking, targets {digest[:16]}"]
    return "\n".join(lines), {"targets_sha256": digest, "seeds": num_seeds, "rows": figures, "comparisons": found}


def _line(own: Mapping[str, Any]) -> str:
    low, high = own["ndcg_at_10_ci95"]
    accuracy = f"{own['ndcg_at_10']:.4f} [{low:.4f}, {high:.4f}]"
    parameters = format(own["num_parameters"], ",") if own["num_parameters"] else "-"
    return f"{accuracy:<26}{own['hr_at_10']:<8.4f}{own['validation_ndcg_at_10']:<12.4f}{parameters}"


def _ranks(artifact: Artifact, sequences: Sequences, part: str) -> np.ndarray:
    if RANKS in artifact.manifest["files"]:
        return kept_ranks(artifact, part)
    return evaluate(load_baseline(artifact), sequences, part)
