"""The training loop: a resumed run ends bit for bit where an uninterrupted one does; the best epoch wins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distill.tracking import Tracker, open_tracker
from distill.training import Fit, TrainingError, step_seed
from recommender.config import OptimSection

SECTION = OptimSection(epochs=4, patience=10, checkpoint_every_s=1e-9, learning_rate=0.05)


class Interrupted(Exception):
    pass


def fit(
    folder: Path,
    stop_at: int | None = None,
    scores: list[float] | None = None,
    section: OptimSection = SECTION,
    tracker: Tracker | None = None,
    slow_layer: int | None = None,
) -> tuple[nn.Module, Fit]:
    """A small regression with dropout; `stop_at` interrupts before that step; one layer may learn a hundred times slower."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    steps = iter(range(10**6))

    def losses(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if stop_at is not None and next(steps) == stop_at:
            raise Interrupted
        return {"loss": (model(batch) - batch.sum(-1, keepdim=True)).pow(2).mean()}

    given_scores = iter(scores or [0.1, 0.2, 0.3, 0.4])
    run = Fit(
        model,
        batches=lambda epoch: [torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * epoch + i)) for i in range(5)],
        losses=losses,
        validate=lambda: next(given_scores),
        section=section,
        seed=3,
        checkpoint=folder,
        name="test",
        tracker=tracker,
        slow_parameters=[] if slow_layer is None else list(model[slow_layer].parameters()),
        slow_learning_rate=section.learning_rate / 100,
    )
    return model, run


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [0, 1, 4, 5, 7, 12, 19])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop_at: int, ema_decay: float) -> None:
    section = SECTION.model_copy(update={"ema_decay": ema_decay})
    whole, run = fit(tmp_path / "whole", section=section)
    counters = run.run()
    _, run = fit(tmp_path / "broken", stop_at, section=section)
    with pytest.raises(Interrupted):
        run.run()
    resumed, run = fit(tmp_path / "broken", scores=[0.1, 0.2, 0.3, 0.4][stop_at // 5 :], section=section)
    assert run.run().history == counters.history
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_a_tracker_is_told(tmp_path: Path) -> None:
    """Through TensorBoard's own reader: terms and rates every 20 steps, a score after each of the 4 epochs of 5 steps."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, run = fit(tmp_path / "run", tracker=open_tracker(tmp_path / "events"))
    history = run.run().history
    events = reader.EventAccumulator(str(tmp_path / "events")).Reload()
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "train/positions_per_s", "learning_rate/0", "validation/ndcg_at_10")
    }
    scores = events.Scalars("validation/ndcg_at_10")
    assert [(event.step, pytest.approx(event.value)) for event in scores] == [(5, 0.1), (10, 0.2), (15, 0.3), (20, 0.4)]
    (loss,) = events.Scalars("train/loss")
    assert loss.step == 20 and 0 < loss.value < 10 * history[-1]["loss"]
    assert events.Scalars("train/positions_per_s")[0].value > 0


def test_best_epoch_is_kept_and_patience_stops(tmp_path: Path) -> None:
    section = SECTION.model_copy(update={"epochs": 10, "patience": 2})
    model, run = fit(tmp_path / "a", scores=[0.1, 0.5, 0.4, 0.3, 0.9], section=section)
    counters = run.run()
    assert (counters.best_epoch, counters.epoch) == (1, 4)
    best, run = fit(tmp_path / "b", scores=[0.1, 0.5], section=section)
    with pytest.raises(StopIteration):
        run.run()
    run._load_weights(load_file(tmp_path / "b" / "best.safetensors"))
    for a, b in zip(model.parameters(), best.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_kept_weights_are_the_moving_average(tmp_path: Path) -> None:
    decay, path = 0.9, []
    model, run = fit(tmp_path / "a", section=SECTION.model_copy(update={"ema_decay": decay, "epochs": 1}), scores=[0.1])
    start, step = [p.detach().clone() for p in model.parameters()], run.optimizer.step

    def recording_step() -> None:
        step()
        path.append([p.detach().clone() for p in model.parameters()])

    run.optimizer.step = recording_step
    run.run()
    expected = start
    for number, weights in enumerate(path):
        keep = min(decay, (1 + number) / (10 + number))
        expected = [keep * e + (1 - keep) * w for e, w in zip(expected, weights, strict=True)]
    for kept, average, last in zip(model.parameters(), expected, path[-1], strict=True):
        torch.testing.assert_close(kept.detach(), average)
        assert not torch.equal(kept, last)


def test_seeds_and_steps_drop_different_units() -> None:
    drawn = set()
    for seed, step in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(step_seed(seed, step))
        drawn.add(tuple(torch.rand(5).tolist()))
    assert len(drawn) == 3


def test_learning_rates_rise_fall_and_differ(tmp_path: Path) -> None:
    """Linear over the first quarter, then a cosine down to a tenth; the slow parameters at a hundredth of it all along."""
    section = SECTION.model_copy(update={"warmup_fraction": 0.25, "final_learning_rate_fraction": 0.1})
    model, run = fit(tmp_path / "a", section=section, slow_layer=2)
    slow, step, rates = {id(p) for p in model[2].parameters()}, run.optimizer.step, []

    def recording_step() -> None:
        rates.append({id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]})
        step()

    run.optimizer.step = recording_step
    run.run()
    assert len(rates) == 20 and rates[0].keys() == {id(p) for p in model.parameters()}
    for number, found in enumerate(rates):
        down = 0.1 + 0.9 * (1 + math.cos(math.pi * (number - 5) / 15)) / 2
        share = (max(number / 5, 0.01) if number < 5 else down) * section.learning_rate
        assert found == pytest.approx({p: share / 100 if p in slow else share for p in found})


def test_nan_stops_with_a_reason(tmp_path: Path) -> None:
    model, run = fit(tmp_path / "a")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss became nan at step 0; lower the learning rate"):
        run.run()


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_products_are_of_the_precision_that_was_asked_for_in_steps_alone(tmp_path: Path, precision: str) -> None:
    _, run = fit(tmp_path, section=SECTION.model_copy(update={"matmul_precision": precision}))
    seen, step, scores = set[tuple[str, str]](), run.losses, run.validate

    def losses(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.add(("step", torch.get_float32_matmul_precision()))
        if run.at.epoch == 3:
            raise Interrupted
        return step(batch)

    def validate() -> float:
        seen.add(("validation", torch.get_float32_matmul_precision()))
        return scores()

    run.losses, run.validate = losses, validate
    with pytest.raises(Interrupted):
        run.run()
    assert seen == {("step", precision), ("validation", "highest")}
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_choice_that_is_newer_than_artefacts_does_not_change_what_they_were_made_by() -> None:
    assert "matmul_precision" not in OptimSection().model_dump(mode="json")
    assert OptimSection(matmul_precision="medium").model_dump(mode="json")["matmul_precision"] == "medium"


def test_it_learns(tmp_path: Path) -> None:
    _, run = fit(tmp_path / "a", section=SECTION.model_copy(update={"epochs": 30}), scores=[i / 100 for i in range(30)])
    history = run.run().history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
