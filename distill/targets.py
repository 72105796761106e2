"""Stage: the teacher's distributions at every training position, as sharded safetensors.

Of several members the mean is the teacher's (`members.Ensemble`). Row p - 1 belongs to training position p (see
`recommender/windows.py`). Kept: the K likeliest items at the recipe's temperature and their probabilities; the rest's mass is
what is missing to 1. Shards already written are not computed again. The cache is keyed by the digests of the members and the
data through the artefact's inputs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from distill.config import TargetsSection
from distill.device import device, rows_at_once
from distill.members import Member
from distill.objectives.base import TeacherTargets
from foundation import console
from foundation.artifact import Artifact, Draft, opens, replace_durably
from recommender.split import Sequences
from recommender.windows import Batch, TrainingWindows

_SHARD_WINDOWS = 2048


def build_targets(
    member: Member, sequences: Sequences, section: TargetsSection, draft: Draft, states: Sequence[str] = ()
) -> None:
    """Run a member over the training part (with `ends`, its ends as well); `states` are those of its that are kept as well.

    Every position is seen once, with at least half a window of context where its user has one.
    """
    windows = TrainingWindows(sequences, member.max_length, section.ends)
    if not windows.num_labels:
        raise ValueError("the training part holds no pair of successive items; the data is too small to distil from")
    rows = 1 << (rows_at_once(sequences.num_items, cpu=32, gpu=256).bit_length() - 1)  # shards begin alike on every device
    batches, per_shard = list(windows.overlapping(rows)), _SHARD_WINDOWS // rows
    starts = range(0, len(batches), per_shard)
    names = [f"shard-{number:05d}.safetensors" for number in range(len(starts))]
    for start, name in zip(console.progress(starts, "teacher targets"), names, strict=True):
        if not (draft.checkpoint / name).exists():
            shard = _shard(member, batches[start : start + per_shard], section, states)
            aside = draft.checkpoint / "shard.tmp"
            save_file(shard, aside)
            replace_durably(aside, draft.checkpoint / name)
    for name in names:
        draft.take(name)
    kept = section.model_dump(include={"top_k", "temperature", "ends"})
    index = {"num_positions": windows.num_positions, "shards": names, "states": list(states), **kept}
    (draft.path / "index.json").write_text(json.dumps(index))


@torch.no_grad()
def _shard(member: Member, batches: list[Batch], section: TargetsSection, states: Sequence[str]) -> dict[str, np.ndarray]:
    parts: list[dict[str, np.ndarray]] = []
    for batch in batches:
        keep_BL = torch.from_numpy(batch.position_BL > 0).to(device())
        history_BL = torch.from_numpy(batch.history_BL).to(device())
        log_p_NI, held = member.see(history_BL, keep_BL, states)
        top = (log_p_NI / section.temperature).softmax(-1).topk(min(section.top_k, log_p_NI.shape[-1]), dim=-1)
        part = {
            "position": batch.position_BL[batch.position_BL > 0],
            "index": top.indices.int().cpu().numpy(),
            "probability": top.values.half().cpu().numpy(),
        }
        parts.append(part | {name: _halved(name, state_NW) for name, state_NW in held.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _halved(name: str, state_NW: torch.Tensor) -> np.ndarray:
    halved = state_NW.half().cpu().numpy()
    if not np.isfinite(halved).all():
        raise ValueError(f"the teacher's {name!r} is not finite in 16 bits; leave out the objective that reads it")
    return halved


@dataclass(frozen=True)
class Targets:
    """Random access by position; all in memory."""

    temperature: float
    index_PK: np.ndarray
    probability_PK: np.ndarray
    states: dict[str, np.ndarray]  # float16[P, *] each, of the first member
    ends: bool = False

    def at(self, position_N: np.ndarray, to: torch.device) -> TeacherTargets:
        """Targets of N positions (numbered from 1)."""
        rows = position_N - 1
        index_NK = torch.from_numpy(self.index_PK[rows]).long().to(to)
        return TeacherTargets(index_NK, torch.from_numpy(self.probability_PK[rows]).float().to(to), self.temperature)

    def states_at(self, position_N: np.ndarray, to: torch.device) -> dict[str, torch.Tensor]:
        """What the first member held there, by name, each float32[N, *]."""
        return {name: torch.from_numpy(state[position_N - 1]).float().to(to) for name, state in self.states.items()}


@opens
def load_targets(artifact: Artifact, num_items: int) -> Targets:
    """Open what `build_targets` wrote, and check that it holds distributions over a catalogue of `num_items`."""
    index = json.loads(artifact.file("index.json").read_text())
    ends = index.get("ends", False)  # which older ones do not name
    section = TargetsSection(top_k=index["top_k"], temperature=index["temperature"], ends=ends)
    found = _joined([artifact.file(name) for name in index["shards"]], index["num_positions"])
    position_N, index_PK, probability_PK = (found[name] for name in ("position", "index", "probability"))
    if index_PK.shape != (len(position_N), min(section.top_k, num_items)) or probability_PK.shape != index_PK.shape:
        raise ValueError(f"its shape {index_PK.shape} is not positions x top-K")
    if index_PK.min() < 0 or index_PK.max() >= num_items:
        raise ValueError(f"it names items outside the catalogue of {num_items}")
    if probability_PK.min() < 0 or probability_PK.sum(1, dtype=np.float32).max() > 1.01:
        raise ValueError("its probabilities are negative or sum to more than 1")
    states = {name: found[name] for name in index.get("states", [])}
    for name, state in states.items():
        if state.ndim != 2 or len(state) != len(position_N):
            raise ValueError(f"its states {name!r} are not one row per position")
    return Targets(section.temperature, index_PK, probability_PK, states, section.ends)


def _joined(shards: Sequence[Path], num_positions: int) -> dict[str, np.ndarray]:
    """The shards' tensors one after the other, of which no more than one shard is held twice."""
    found: dict[str, np.ndarray] = {}
    start = 0
    for path in shards:
        shard = load_file(path)
        stop = start + len(shard["position"])
        if not found:
            found = {name: np.empty((num_positions, *part.shape[1:]), part.dtype) for name, part in shard.items()}
        for name in found.keys() | shard.keys():
            whole, part = found[name], shard[name]
            if (
                len(part) != stop - start
                or stop > num_positions
                or (part.shape[1:], part.dtype) != (whole.shape[1:], whole.dtype)
            ):
                raise ValueError(f"{path.name}: its {name!r} does not go on where the other shards end")
            whole[start:stop] = part
        start = stop
    if start != num_positions or not np.array_equal(found["position"], np.arange(1, num_positions + 1)):
        raise ValueError("it does not cover every training position once")
    return found
