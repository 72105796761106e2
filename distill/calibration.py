"""Calibration of distributions over the catalogue (Guo et al., 2017): how far confidence is from accuracy, and what mends it.

Shapes: N requests, I items; `target_N` are columns. A temperature T turns probabilities p into softmax(log p / T).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

NUM_BINS = 15
_LOWEST, _HIGHEST = 0.1, 10.0  # temperatures that are looked at


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error and negative log-likelihood (nats), as given and at the best temperature."""

    requests: int
    ece: float
    nll: float
    temperature: float
    ece_at_temperature: float
    nll_at_temperature: float


def calibrate(log_probability_NI: Tensor, target_N: Tensor) -> Calibration:
    """The temperature of least negative log-likelihood, and the errors with and without it."""
    found = minimize_scalar(
        lambda log_t: nll(log_probability_NI, target_N, float(np.exp(log_t))),
        bounds=(np.log(_LOWEST), np.log(_HIGHEST)),
        method="bounded",
        options={"xatol": 0.005},
    )
    temperature = float(np.exp(found.x))  # type: ignore[attr-defined]
    return Calibration(
        len(target_N),
        ece(log_probability_NI, target_N, 1.0),
        nll(log_probability_NI, target_N, 1.0),
        temperature,
        ece(log_probability_NI, target_N, temperature),
        nll(log_probability_NI, target_N, temperature),
    )


def nll(log_probability_NI: Tensor, target_N: Tensor, temperature: float) -> float:
    """Mean of -log p(target), nats."""
    scaled_NI = log_probability_NI / temperature
    return float((scaled_NI.logsumexp(-1) - scaled_NI.gather(-1, target_N[:, None])[:, 0]).mean())


def ece(log_probability_NI: Tensor, target_N: Tensor, temperature: float, num_bins: int = NUM_BINS) -> float:
    """Mean over requests of |accuracy - confidence| of their bin, bins of equal width by the likeliest item's probability."""
    scaled_NI = log_probability_NI / temperature
    best = scaled_NI.max(-1)
    confidence_N = (best.values - scaled_NI.logsumexp(-1)).exp().double()
    correct_N = (best.indices == target_N).double()
    bin_N = (confidence_N * num_bins).long().clamp(max=num_bins - 1)
    gap_B = torch.zeros(num_bins, dtype=torch.float64).to(bin_N.device).index_add(0, bin_N, correct_N - confidence_N)
    return float(gap_B.abs().sum() / len(target_N))
