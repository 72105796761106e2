"""A report as Markdown: the table a person reads; "-" where nothing was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmark.accuracy import headlines, percent

_MIB = 2**20
Rows = Mapping[str, Any]


def _ratio(key: str) -> Callable[[Rows], str]:
    return lambda row: f"{row[key]['median']:,.1f}" if row.get(key) else "-"


def _number(key: str, form: str, scale: float | None = None) -> Callable[[Rows], str]:
    def cell(row: Rows) -> str:
        value = row.get(key)
        return "-" if value is None else format(value if scale is None else value * scale, form)

    return cell


def _accuracy(row: Rows) -> str:
    if "ndcg_at_10" not in row:
        return "-"
    low, high = row["ndcg_at_10_ci95"]
    return f"{row['ndcg_at_10']:.4f} [{low:.4f}, {high:.4f}]"


def _runs_in(row: Rows) -> str:
    return f"{row['runtime']}, {row['precision']}" if row["status"] == "ok" else row["status"]


def _share(row: Rows) -> str:
    share = row.get("share_of_limit", {}).get("offline")
    return "-" if share is None else f"{share:.0%}"


_COLUMNS: dict[str, Callable[[Rows], str]] = {
    "variant": lambda row: row["variant"],
    "NDCG@10 [95% CI]": _accuracy,
    "HR@10": _number("hr_at_10", ".4f"),
    "p50 ms": _number("latency_p50_s", ".2f", 1e3),
    "p99 ms": lambda row: _number("latency_p99_s", ".2f", 1e3)(row) if row.get("latency_samples", 0) >= 100 else "-",
    "histories/s": _number("throughput_per_s", ",.0f"),
    "x teacher": _ratio("throughput_vs_teacher"),
    "x full depth": _ratio("throughput_vs_full_depth_teacher"),
    "of the limit": _share,
    "peak RSS MiB": _number("peak_rss_bytes", ",.0f", 1 / _MIB),
    "parameters": _number("num_parameters", ","),
    "MiB on disk": _number("artifact_bytes", ",.1f", 1 / _MIB),
    "runs in": _runs_in,
}

_GPU_COLUMNS: dict[str, Callable[[Rows], str]] = {
    "GPU MiB (torch)": _number("peak_gpu_bytes", ",.0f", 1 / _MIB),
    "GPU MiB (process)": _number("gpu_process_bytes", ",.0f", 1 / _MIB),
    "mJ a history": _number("joules_per_history", ",.1f", 1e3),
}


def variant_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of all variants; what only a GPU has is there where one was."""
    gpu = {name: cell for name, cell in _GPU_COLUMNS.items() if any(cell(row) != "-" for row in rows)}
    return cells(_COLUMNS | gpu, rows)


def to_markdown(report: Mapping[str, Any]) -> str:
    """Tables, comparisons and protocol."""
    parts = [_table(variant_cells(report["rows"]))]
    full = report["full_depth_teacher"]
    if "throughput_per_s" in full:
        parts.append(
            f"The teacher's LLM at full depth ({full['num_layers']} layers; untrained, for speed and parameters only) "
            f"completes "
            f"{full['throughput_per_s']:,.1f} histories/s ({full['precision']}) with {full['num_parameters']:,} parameters."
        )
    if lines := headlines(report["rows"]):
        parts.append("What compression changed:\n\n" + "\n".join(f"- {line.text}" for line in lines))
    parts.append("\n".join(f"- {line}" for line in sentences(report)))
    if drifted := drift_cells(report["rows"]):
        parts.append("NDCG@10 against the stage before, by slice (95% interval; too few hits to say: -)")
        parts.append(_table(drifted))
    if judged := beyond_cells(report["rows"]):
        parts.append("Beyond accuracy, of the ten items first in each list")
        parts.append(_table(judged))
    if rates := rate_cells(report["rows"]):
        parts.append("Requests at random instants: the highest rate that was held")
        parts.append(_table(rates))
    if sweep := catalogue_cells(report.get("catalogue_sweep", [])):
        parts.append("The student's architecture over larger catalogues, weights drawn, ONNX Runtime")
        parts.append(_table(sweep))
    if report.get("ceiling"):
        parts.append(ceiling_sentence(report["ceiling"]))
    protocol, machine = report["protocol"], report["environment"]
    parts.append(
        f"Accuracy: {protocol['accuracy']}; {protocol['users']} users, seeds {protocol['seeds']}, targets "
        f"{report['targets_sha256'][:16]}. Speed: {protocol['speed']}. Machine: {machine['cpu']}, {machine['num_cpus']} CPUs, "
        f"GPU: {machine['gpu'] or 'none'}. {report['date']}."
    )
    return "\n\n".join(parts) + "\n"


def ceiling_sentence(ceiling: Mapping[str, Any]) -> str:
    """What the machine could do, measured in the same run."""
    rates = ", ".join(f"{rate / 1e9:,.0f} G/s in {name}" for name, rate in ceiling["gemm_per_s"].items())
    return (
        f"Of the limit: the time the machine's own matrix products ({rates}) or a copy of the weights "
        f"({ceiling['bytes_per_s'] / 1e9:.1f} GB/s) would take at least, over the time of a batch."
    )


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The paired comparisons in words."""
    return [f"NDCG@10, {name}: {percent(value)}" for name, value in report["comparisons"].items()]


def cells(columns: Mapping[str, Callable[[Rows], str]], rows: Sequence[Rows]) -> list[list[str]]:
    """Header and rows of a table, as text."""
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def drift_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of drift by slice; empty where no variant has a stage before."""

    def cell(name: str) -> Callable[[Rows], str]:
        return lambda row: percent(found) if (found := row["drift"]["ndcg_at_10"].get(name)) else "-"

    drifted = [row for row in rows if "drift" in row]
    names = dict.fromkeys(name for row in drifted for name in row["drift"]["ndcg_at_10"])
    columns: dict[str, Callable[[Rows], str]] = {
        "variant": lambda row: row["variant"],
        "stage before": lambda row: row["drift"]["from"],
        **{name: cell(name) for name in names},
        "same items at 20": lambda row: f"{row['drift']['overlap_at_20']:.1%}",
        "same order (RBO)": lambda row: f"{row['drift']['rank_biased_overlap']:.3f}",
    }
    return cells(columns, drifted) if drifted else []


def beyond_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of what lists are like beyond accuracy; empty where nothing was ranked."""

    def figure(name: str, form: str) -> Callable[[Rows], str]:
        return lambda row: format(row["beyond_accuracy"][name], form)

    judged = [row for row in rows if "beyond_accuracy" in row]
    columns: dict[str, Callable[[Rows], str]] = {
        "variant": lambda row: row["variant"],
        "novelty (bits)": figure("novelty_bits", ".2f"),
        "diversity in a list": figure("intra_list_diversity", ".3f"),
        "coverage": figure("coverage", ".1%"),
        "Gini": figure("gini", ".3f"),
        "popularity lift": figure("popularity_lift", "+.1%"),
        "miscalibration (KL)": figure("miscalibration", ".3f"),
    }
    return cells(columns, judged) if judged else []


def rate_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of rates under a bound on p99, medians over rounds; empty where none was searched."""
    searched = [row for row in rows if row.get("max_rate")]

    def held(row: Rows) -> float:
        return float(np.median([found["rate_per_s"] for found in row["max_rate"]]))

    columns: dict[str, Callable[[Rows], str]] = {
        "variant": lambda row: row["variant"],
        "requests/s": lambda row: f"{held(row):,.0f}",
        "p99 within ms": lambda row: f"{1e3 * row['max_rate'][0]['max_p99_s']:,.0f}",
        "of offline": lambda row: f"{held(row) / row['throughput_per_s']:.0%}",
    }
    return cells(columns, searched) if searched else []


def catalogue_cells(sweep: Sequence[Rows]) -> list[list[str]]:
    """The table of cost by the size of the catalogue; empty where none was swept."""
    columns: dict[str, Callable[[Rows], str]] = {
        "items": _number("num_items", ","),
        "p50 ms": _number("latency_p50_s", ".2f", 1e3),
        "histories/s": _number("throughput_per_s", ",.0f"),
        "peak RSS MiB": _number("peak_rss_bytes", ",.0f", 1 / _MIB),
        "status": lambda row: row["status"],
    }
    return cells(columns, sweep) if sweep else []


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])
