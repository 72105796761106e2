"""The training loop of teacher and student: AdamW, warm-up and cosine, averaged weights, early stopping, checkpoint and resume.

A run is a pure function of its seed: batches come from (seed, epoch), and every step reseeds torch's generator from (seed,
step), so a run resumed from a checkpoint gives the same weights, bit for bit, as one that was never interrupted (on one CPU
and thread count; CUDA kernels do not promise it). A checkpoint is two safetensors files: weights, optimizer moments and
averaged weights, with the counters as metadata; and the weights of the best epoch so far.

With `ema_decay` the weights that are validated and kept are an exponential moving average of the trained ones (Polyak and
Juditsky, 1992; the decay grows to its value over the first steps, so that the start does not linger).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.tracking import Tracker
from foundation import console
from foundation.artifact import replace_durably
from recommender.config import OptimSection

_TELL_EVERY = 20  # steps
_LAST, _BEST = "last.safetensors", "best.safetensors"


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why."""


@dataclass
class Counters:
    """Where a run is."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = -1
    loss_sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


class Fit:
    """One training run over `model`'s trainable parameters.

    batches(epoch): the batches of an epoch, the same for the same epoch; the length of one is how many positions it teaches.
    losses(batch): named scalar terms; "loss" is the one minimised.
    validate(): validation NDCG@10 of the current weights.
    `tracker` is told the terms, the learning rate and the pace now and then, and the score of every epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batches: Callable[[int], Sequence[Any]],
        losses: Callable[[Any], dict[str, Tensor]],
        validate: Callable[[], float],
        section: OptimSection,
        seed: int,
        checkpoint: Path,
        name: str,
        slow_parameters: Sequence[nn.Parameter] = (),
        slow_learning_rate: float | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self.tracker, self.told = tracker or Tracker(), (0, time.monotonic())
        self.model, self.batches, self.losses, self.validate = model, batches, losses, validate
        self.section, self.seed, self.checkpoint, self.name = section, seed, checkpoint, name
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        slow = {id(p) for p in slow_parameters}
        groups = [
            {"params": [p for p in self.parameters.values() if id(p) not in slow], "peak": section.learning_rate},
            {
                "params": [p for p in self.parameters.values() if id(p) in slow],
                "peak": slow_learning_rate or section.learning_rate,
            },
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=0.0, weight_decay=section.weight_decay, fused=True
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if section.ema_decay else {}
        self.at = Counters()

    def run(self) -> Counters:
        """Train (or go on training) to the end and leave the best epoch's weights in the model."""
        self._resume()
        total_steps = self.section.epochs * len(self.batches(0))
        try:
            while self.at.epoch < self.section.epochs and self.at.epoch - self.at.best_epoch <= self.section.patience:
                self._epoch(total_steps)
        finally:
            self.tracker.close()
        self._load_weights(load_file(self.checkpoint / _BEST))
        return self.at

    def _epoch(self, total_steps: int) -> None:
        at, batches = self.at, self.batches(self.at.epoch)
        saved = started = time.monotonic()
        self.told = (0, started)
        self.model.train()
        for batch in console.progress(batches[at.step_in_epoch :], f"{self.name} epoch {at.epoch + 1}/{self.section.epochs}"):
            self._step(batch, total_steps)
            if time.monotonic() - saved > self.section.checkpoint_every_s:
                self._save()
                saved = time.monotonic()
        train_s = time.monotonic() - started
        self.model.eval()
        with self._averaged():
            score = self.validate()
        means = {name: total / at.step_in_epoch for name, total in at.loss_sums.items()}
        self.tracker.log(at.step, {"validation/ndcg_at_10": score})
        at.history.append({"epoch": at.epoch, "validation_ndcg_at_10": score, **means})
        console.say(
            f"{self.name} epoch {at.epoch + 1}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            + f", validation NDCG@10 {score:.4f} ({train_s:.1f} s + {time.monotonic() - started - train_s:.1f} s)"
        )
        if score > at.best_score:
            at.best_score, at.best_epoch = score, at.epoch
            _write(self.average or self._weights(), self.checkpoint / _BEST, {})
        at.epoch, at.step_in_epoch, at.loss_sums = at.epoch + 1, 0, {}
        self._save()

    def _step(self, batch: Any, total_steps: int) -> None:
        torch.manual_seed(step_seed(self.seed, self.at.step))
        with _matmul_precision(self.section.matmul_precision):
            values = self._descend(batch, total_steps)
        for name, value in values.items():
            self.at.loss_sums[name] = self.at.loss_sums.get(name, 0.0) + value
        self.at.step += 1
        self.at.step_in_epoch += 1
        self._tell(len(batch), values)

    def _descend(self, batch: Any, total_steps: int) -> dict[str, float]:
        """Change the weights by one step; the loss and its terms before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._schedule(min(self.at.step / total_steps, 1.0))
        terms = self.losses(batch)
        if not torch.isfinite(terms["loss"]):
            raise TrainingError(
                f"{self.name}: the loss became {terms['loss'].item()} at step {self.at.step}; lower the learning rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), self.section.clip_norm)
        self.optimizer.step()
        self._update_average()
        return {name: term.item() for name, term in terms.items()}

    def _tell(self, num_positions: int, values: Mapping[str, float]) -> None:
        positions, since = self.told
        self.told = (positions + num_positions, since)
        if self.at.step % _TELL_EVERY == 0:
            pace = self.told[0] / max(time.monotonic() - since, 1e-9)
            rates = {f"learning_rate/{number}": group["lr"] for number, group in enumerate(self.optimizer.param_groups)}
            self.tracker.log(self.at.step, {f"train/{name}": value for name, value in values.items()} | rates)
            self.tracker.log(self.at.step, {"train/positions_per_s": pace})
            self.told = (0, time.monotonic())

    def _update_average(self) -> None:
        if self.average:
            decay = min(self.section.ema_decay, (1 + self.at.step) / (10 + self.at.step))
            torch._foreach_lerp_(list(self.average.values()), list(self._weights().values()), 1 - decay)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the model's place, where there are any."""
        trained = {name: p.clone() for name, p in self._weights().items()} if self.average else {}
        self._load_weights(self.average)
        try:
            yield
        finally:
            self._load_weights(trained)

    def _schedule(self, done: float) -> float:
        """Learning rate as a share of its peak after the fraction `done` of all steps."""
        warmup, floor = self.section.warmup_fraction, self.section.final_learning_rate_fraction
        if done < warmup:
            return max(done / warmup, 0.01)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.parameters.items()}

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in weights.items():
                self.parameters[name].copy_(tensor)

    def _save(self) -> None:
        tensors = {f"weight.{name}": p for name, p in self._weights().items()}
        for name, p in self.parameters.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        _write(tensors, self.checkpoint / _LAST, {"counters": json.dumps(asdict(self.at))})

    def _resume(self) -> None:
        path = self.checkpoint / _LAST
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as stored:
                at = Counters(**json.loads(stored.metadata()["counters"]))
            tensors = load_file(path)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            console.say(f"{self.name}: the checkpoint cannot be read ({error}); starting anew")
            return
        self.at = at
        self._load_weights({name: tensors[f"weight.{name}"] for name in self.parameters})
        for name, average in self.average.items():
            average.copy_(tensors[f"average.{name}"])
        for name, p in self.parameters.items():
            state = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors}
            if state:
                self.optimizer.state[p] = {key: value.to(p.device) for key, value in state.items()}
        console.say(f"{self.name}: going on from epoch {self.at.epoch + 1}, step {self.at.step}")


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def step_seed(seed: int, step: int) -> int:
    """A seed for torch's generators, which on the CPU read the low 32 bits only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:4], "big")


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    aside = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata)
    replace_durably(aside, path)
