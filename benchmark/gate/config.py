"""Recipe section of the gate: what a revision is held to, and how it is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from foundation.recipe import Contradiction, Section


def _budget(value: float) -> float:
    if value and value <= 1:
        raise ValueError("a ratio above 1 is needed, or 0 for what is not gated")
    return value


Budget = Annotated[float, Field(ge=0, le=10), AfterValidator(_budget)]


class Budgets(Section):
    """Allowed ratios of head to base; 0 = not gated."""

    latency_p50: Budget = Field(default=1.05, description="median time of a request of one history")
    throughput_time: Budget = Field(default=1.05, description="median time of a batch, the inverse of throughput")
    peak_rss: Budget = Field(default=1.10, description="peak resident memory of the serving process")
    artifact_bytes: Budget = Field(default=1.05, description="bytes of the exported graph")
    min_ndcg: float = Field(
        default=0.99, ge=0, le=1, description="NDCG@10 of head over base, each judged on the same histories; 0 = not gated"
    )


class GateSection(Section):
    """How the gate measures."""

    budgets: Budgets = Budgets()
    groups: int = Field(default=5, ge=2, description="groups of fresh processes before the first verdict, and in each step")
    max_groups: int = Field(default=15, ge=2, description="and in all, before the gate says that it cannot tell")
    blocks: int = Field(default=6, ge=2, multiple_of=2, description="balanced head/base blocks in each group")
    block_s: float = Field(default=0.05, gt=0, description="a block lasts at least this long, and at least 5 calls")
    warmup_s: float = Field(default=0.2, ge=0)
    batch_size: int = Field(default=64, ge=2, description="of the throughput blocks")
    num_threads: int = Field(default=1, ge=1, description="of the runtime; one is the quietest")
    num_items: int = Field(default=5000, ge=100, description="catalogue of the constructed checkpoint")
    resamples: int = Field(default=2000, ge=100)
    max_unfit: float = Field(default=0.02, gt=0, description="base against itself: beyond this the machine is unfit")
    max_width: float = Field(default=0.15, gt=0, description="and where its interval is wider than this")

    @model_validator(mode="after")
    def _at_least_one_step(self) -> GateSection:
        if self.max_groups < self.groups:
            raise Contradiction(
                f"gate.max_groups = {self.max_groups} is less than gate.groups = {self.groups}",
                "gate.max_groups",
                "gate.groups",
            )
        return self
