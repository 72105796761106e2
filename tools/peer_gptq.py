"""The measured peer: optimum's GPTQ (Frantar et al., 2023) for the teacher's body, beside our NF4, on the same ranking targets.

    make peer-gptq        # an environment of its own, .venv-peers

optimum's GPTQ needs gptqmodel, whose release declares newer torch and numpy than the ones pinned here; it runs with ours, but
cannot be a dependency, so it is a peer. Items are the body's vocabulary here: their tokens become its token embedding, so that
GPTQ calibrates on training histories as it would on text. The quantized body is judged in memory (saving a v1 checkpoint as
"gptq_v2", which optimum 2.3 does, reloads wrongly).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimum.gptq import GPTQQuantizer
from torch import nn

from distill.evaluation import kept_ranks
from distill.llm import drop_vocabulary
from distill.teacher import Teacher, TeacherRecommender, load_teacher
from foundation import console
from foundation.artifact import load
from recommender.data import load_dataset
from recommender.evaluate import evaluate
from recommender.metrics import ndcg, paired_relative_difference, summary
from recommender.split import Sequences, build_sequences
from recommender.windows import TrainingWindows

NUM_CALIBRATION, GROUP_SIZE = 128, 64


@torch.no_grad()
def quantize_body(teacher: Teacher, sequences: Sequences) -> None:
    """Replace the body's linear layers by 4-bit GPTQ ones, in place."""
    width = teacher.body.config.hidden_size
    tokens_ID = teacher.to_token(teacher.table())
    teacher.body.config.vocab_size = len(tokens_ID)
    teacher.body.set_input_embeddings(nn.Embedding.from_pretrained(tokens_ID, freeze=True))
    windows = TrainingWindows(sequences, teacher.section.max_length).epoch(0, 1, seed=0)
    histories = [torch.from_numpy(batch.history_BL) for batch in windows if batch.history_BL.all()][:NUM_CALIBRATION]
    calibration: Any = [{"input_ids": h, "attention_mask": torch.ones_like(h)} for h in histories]
    group_size = GROUP_SIZE if width % GROUP_SIZE == 0 else 16
    teacher.body = GPTQQuantizer(bits=4, group_size=group_size, dataset=calibration).quantize_model(teacher.body)
    drop_vocabulary(teacher.body)


def main() -> None:
    parser = argparse.ArgumentParser(description="optimum GPTQ as a peer of teacher-nf4")
    parser.add_argument("folder", type=Path, help="runs/DATASET/seed-S with teacher and teacher-nf4")
    folder = parser.parse_args().folder
    sequences = build_sequences(load_dataset(load(folder.parent / "data", "dataset")))
    artifact = load(folder / "teacher", "teacher")
    teacher = load_teacher(artifact)
    started = time.perf_counter()
    quantize_body(teacher, sequences)
    quantize_s = time.perf_counter() - started
    ranks = {
        "teacher": kept_ranks(artifact, "test"),
        "teacher-nf4": kept_ranks(load(folder / "teacher-nf4", "teacher-nf4"), "test"),
        "optimum-gptq-int4": evaluate(TeacherRecommender(teacher, torch.float32), sequences, "test"),
    }
    float_U = ndcg(ranks["teacher"], 10)
    rows: dict[str, Any] = {
        name: {**summary(rank_U), "ndcg_at_10_vs_teacher": paired_relative_difference(ndcg(rank_U, 10), float_U)}
        for name, rank_U in ranks.items()
    }
    rows["optimum-gptq-int4"]["quantize_s"] = round(quantize_s, 1)
    agree = np.mean(ranks["optimum-gptq-int4"] == ranks["teacher"])
    console.result({"targets_sha256": sequences.targets_sha256(), "rows": rows, "same_rank_as_teacher": float(agree)})


if __name__ == "__main__":
    main()
