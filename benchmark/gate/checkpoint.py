"""The fixed checkpoint both revisions export: a student of the recipe's shape with drawn weights, and a catalogue for it.

Latency, memory and size do not depend on what a model has learnt, so nothing is trained. What a graph ranks first is compared
all the same: where the base's first item stands in the head's list is an NDCG that is 1 where nothing has changed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import torch

from foundation.artifact import Artifact, Draft, make
from recommender.cleaning import write_dataset
from recommender.config import StudentSection
from recommender.data import Tables
from recommender.student import Student, save_student

_USERS, _MAX_HISTORY, _SPREAD = 300, 60, 5.0


def drawn_checkpoint(section: StudentSection, num_items: int, folder: Path) -> tuple[Artifact, Artifact]:
    """(student, dataset) in a folder of their own under `folder`, the same for the same section and catalogue size."""
    recipe = {"student": section.model_dump(mode="json")}
    key = hashlib.sha256(json.dumps([recipe, num_items]).encode()).hexdigest()[:12]
    folder = folder / f"checkpoint-{key}"
    data = make(
        folder / "data", "dataset", recipe={"num_items": num_items}, inputs={}, build=lambda draft: _draw_data(num_items, draft)
    )

    def build(draft: Draft) -> None:
        torch.manual_seed(0)
        student = Student(section, num_items, None)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(_SPREAD)  # far enough from zero that lists differ from history to history
        save_student(student, draft)
        draft.metrics["num_parameters"] = student.num_parameters

    return make(folder / "student", "student", recipe=recipe, inputs={"data": data}, build=build, seed=0), data


def _draw_data(num_items: int, draft: Draft) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for user in range(_USERS):
        length = int(rng.integers(3, min(_MAX_HISTORY, num_items) + 1))
        rows += [(f"u{user}", f"i{item}") for item in rng.choice(num_items, length, replace=False)]
    ids = [f"i{number}" for number in range(num_items)]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    write_dataset(Tables(interactions, pl.DataFrame({"item_id": ids, "title": ids})), draft, 0.0)
