"""The result table of `recdistill distill`: accuracy of the baselines, the arms and the teacher, from the ranks they kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmark.report import comparisons
from distill.evaluation import RANKS, test_ranks
from foundation.artifact import Artifact
from recommender.baselines import load_baseline
from recommender.evaluate import evaluate
from recommender.metrics import bootstrap_ci, hit_rate, ndcg
from recommender.split import Sequences


def accuracy_table(rows: Mapping[str, Sequence[Artifact]], sequences: Sequences) -> tuple[str, dict[str, Any]]:
    """The table as text, and its figures; `rows` maps a variant to its artefacts, one per seed."""
    ranks = {name: np.array([_ranks(artifact, sequences) for artifact in artifacts]) for name, artifacts in rows.items()}
    lines, figures = [f"{'variant':<14}{'NDCG@10 [95% CI]':<28}{'HR@10':<9}parameters"], {}
    for name, rank_SU in ranks.items():
        value_U = ndcg(rank_SU, 10).mean(axis=0)
        low, high = bootstrap_ci(value_U)
        num_parameters = rows[name][0].metrics.get("num_parameters")
        figures[name] = {
            "ndcg_at_10": float(value_U.mean()),
            "ndcg_at_10_ci95": [low, high],
            "hr_at_10": float(hit_rate(rank_SU, 10).mean()),
            "num_parameters": num_parameters,
        }
        accuracy = f"{value_U.mean():.4f} [{low:.4f}, {high:.4f}]"
        lines.append(
            f"{name:<14}{accuracy:<28}{figures[name]['hr_at_10']:<9.4f}{format(num_parameters, ',') if num_parameters else '-'}"
        )
    found = comparisons({name: rank_SU for name, rank_SU in ranks.items() if name not in ("popularity", "item-knn")})
    lines += [f"{name}: {d['relative']:+.1%} [{d['ci95'][0]:+.1%}, {d['ci95'][1]:+.1%}]" for name, d in found.items()]
    digest = sequences.targets_sha256()
    num_seeds = len(rows["student"])
    lines.append(f"{len(sequences.evaluated_users)} users, {num_seeds} seed(s), full ranking, targets {digest[:16]}")
    return "\n".join(lines), {"targets_sha256": digest, "seeds": num_seeds, "rows": figures, "comparisons": found}


def _ranks(artifact: Artifact, sequences: Sequences) -> np.ndarray:
    if RANKS in artifact.manifest["files"]:
        return test_ranks(artifact)
    return evaluate(load_baseline(artifact), sequences, "test")
