"""A report as one self-contained page: no script, no request, readable on a phone and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from benchmark import plots
from benchmark.accuracy import headlines
from benchmark.markdown import (
    beyond_cells,
    beyond_drift_cells,
    catalogue_cells,
    ceiling_sentence,
    drift_cells,
    full_depth_sentence,
    latency_cells,
    not_measured,
    rate_cells,
    sentences,
    slice_cells,
    variant_cells,
)

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def to_html(report: Mapping[str, Any], samples_s: Mapping[str, Sequence[float]]) -> str:
    """The page; `samples_s` maps a variant to the seconds its single requests took."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    rows, sweep = report["rows"], report.get("catalogue_sweep", [])
    return template.render(
        report=report,
        table=variant_cells(rows),
        headlines=headlines(rows),
        sentences=sentences(report),
        full_depth=full_depth_sentence(report["full_depth_teacher"]),
        not_measured=not_measured(report),
        drifted=drift_cells(rows),
        sliced=slice_cells(rows),
        timed=latency_cells(rows),
        beyond=beyond_cells(rows),
        beyond_drift=beyond_drift_cells(rows),
        ceiling=ceiling_sentence(report["ceiling"]) if report.get("ceiling") else "",
        pareto=plots.pareto(rows),
        drift=plots.drift(rows) if drift_cells(rows) else "",
        latencies=plots.latencies(samples_s),
        training=plots.training(report["training"]) if report.get("training") else "",
        rates=rate_cells(rows),
        batches=plots.batches(rows) if any(row.get("batches") for row in rows) else "",
        sweep=catalogue_cells(sweep),
        catalogue=plots.catalogue(sweep) if any(point["status"] == "ok" for point in sweep) else "",
    )
