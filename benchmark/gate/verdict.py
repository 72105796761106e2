"""What the samples say: pure statistics, no clock.

Estimate: the median of ln(head / base) over all blocks. Interval: 95%, by bootstrap over groups of processes, then over the
blocks of a group (blocks of one process are not independent). With a budget b (allowed ratio):

    slower     the interval's lower end is above 1 + 0.4 (b - 1), and the estimate is above b
    within     its upper end is below b
    unclear    otherwise; more groups are measured

Over several metrics the first is tested at the levels of Holm (1979), so that one false alarm in the family is as rare as in
one metric. Base against itself, in the same groups, says whether the machine can tell anything at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from benchmark.gate.config import GateSection

_ONE_SIDED = 0.025
_LENIENCY = 0.4


class Finding(Enum):
    """What is known of one metric."""

    WITHIN = "within its budget"
    SLOWER = "over its budget"
    UNCLEAR = "not clear yet"


@dataclass(frozen=True)
class Estimate:
    """A ratio of head to base with its 95% interval, and the chance that it is no more than a tolerated one."""

    ratio: float
    low: float
    high: float
    p_tolerated: float


@dataclass(frozen=True)
class Judged:
    """One metric: its ratio, budget and finding."""

    metric: str
    budget: float
    estimate: Estimate
    finding: Finding

    @property
    def faster(self) -> bool:
        """The mirror image of `slower`: reported, never acted upon."""
        return self.estimate.high < 1 / (1 + _LENIENCY * (self.budget - 1)) and self.estimate.ratio < 1 / self.budget


def estimate(log_ratio_GB: np.ndarray, tolerated: float, resamples: int, seed: int = 0) -> Estimate:
    """Median ratio and interval of float64[groups, blocks] of ln(head / base)."""
    rng, (groups, blocks) = np.random.default_rng(seed), log_ratio_GB.shape
    group_RG = rng.integers(0, groups, (resamples, groups))
    block_RGB = rng.integers(0, blocks, (resamples, groups, blocks))
    medians_R = np.median(log_ratio_GB[group_RG[:, :, None], block_RGB].reshape(resamples, -1), axis=1)
    low, high = np.exp(np.quantile(medians_R, [_ONE_SIDED, 1 - _ONE_SIDED]))
    p = (np.count_nonzero(medians_R <= np.log(tolerated)) + 1) / (resamples + 1)
    return Estimate(float(np.exp(np.median(log_ratio_GB))), float(low), float(high), float(p))


def judge(log_ratios: Mapping[str, np.ndarray], budgets: Mapping[str, float], section: GateSection) -> list[Judged]:
    """Every gated metric; `log_ratios` maps its name to float64[groups, blocks]."""
    estimates = {
        metric: estimate(log_ratios[metric], 1 + _LENIENCY * (budget - 1), section.resamples)
        for metric, budget in budgets.items()
    }
    rejected = holm({metric: found.p_tolerated for metric, found in estimates.items()}, _ONE_SIDED)
    judged = []
    for metric, budget in budgets.items():
        found = estimates[metric]
        if metric in rejected and found.ratio > budget:
            finding = Finding.SLOWER
        else:
            finding = Finding.WITHIN if found.high < budget else Finding.UNCLEAR
        judged.append(Judged(metric, budget, found, finding))
    return judged


def holm(p_values: Mapping[str, float], level: float) -> set[str]:
    """The hypotheses that Holm's step-down procedure rejects at a family-wise `level`."""
    rejected = set()
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda entry: entry[1])):
        if p > level / (len(p_values) - rank):
            break
        rejected.add(name)
    return rejected


def unfit(control: Mapping[str, np.ndarray], section: GateSection) -> str:
    """Why this machine cannot tell (base against itself differs, or is too noisy), or ""."""
    for metric, log_ratio_GB in control.items():
        found = estimate(log_ratio_GB, 1.0, section.resamples)
        if found.low > 1 + section.max_unfit or found.high < 1 - section.max_unfit:
            return f"{metric} of base against itself is {found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]"
        if found.high - found.low > section.max_width:
            return f"the interval of base against itself is as wide as [{found.low:.3f}, {found.high:.3f}] in {metric}"
    return ""
