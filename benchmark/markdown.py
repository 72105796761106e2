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


_COLUMNS: dict[str, Callable[[Rows], str]] = {
    "variant": lambda row: row["variant"],
    "NDCG@10 [95% CI]": _accuracy,
    "HR@10": _number("hr_at_10", ".4f"),
    "p50 ms": _number("latency_p50_s", ".2f", 1e3),
    "histories/s": _number("throughput_per_s", ",.0f"),
    "x teacher": _ratio("throughput_vs_teacher"),
    "x full depth": _ratio("throughput_vs_full_depth_teacher"),
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


def to_terminal(report: Mapping[str, Any]) -> str:
    """One screen: what fits a line of each variant, and what compression changed."""
    shown = ("variant", "NDCG@10 [95% CI]", "p50 ms", "histories/s", "x teacher", "MiB on disk", "runs in")
    lines = cells({name: _COLUMNS[name] for name in shown}, report["rows"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if told := headlines(report["rows"]):
        table += ["", "What compression changed:"]
        table += [line for own in told for line in (f"  {own.text}", own.unknown and f"    {own.unknown}") if line]
    table += [f"not measured: {line}" for line in not_measured(report)]
    return "\n".join(table)


def to_markdown(report: Mapping[str, Any]) -> str:
    """Tables, comparisons and protocol."""
    rows, protocol, machine = report["rows"], report["protocol"], report["environment"]
    parts = [f"# {_plain(report['dataset'])}: what every stage costs and keeps", _table(variant_cells(rows))]
    if told := full_depth_sentence(report["full_depth_teacher"]):
        parts.append(told)
    parts += [f"Not measured: {line}." for line in not_measured(report)]
    if lines := headlines(rows):
        parts += ["## What compression changed", "\n".join(f"- {line.whole}" for line in lines)]
    parts += ["## Paired differences", "\n".join(f"- {line}" for line in sentences(report))]
    for title, cells_of_it, note in (
        ("Drift from the stage before, by slice", drift_cells(rows), "NDCG@10, paired; too few hits to say: -"),
        ("Accuracy by slice", slice_cells(rows), "NDCG@10 and HR@10, which is recall where a user has one target."),
        (
            "Latency",
            latency_cells(rows),
            "A request at a time; in brackets LoadGen's early-stopping bound in the worst round, at 99% confidence. "
            + (ceiling_sentence(report["ceiling"]) if report.get("ceiling") else ""),
        ),
        ("Requests at random instants", rate_cells(rows), "The highest rate that was held."),
        (
            "Larger catalogues",
            catalogue_cells(report.get("catalogue_sweep", [])),
            "The student's architecture, weights drawn, ONNX Runtime.",
        ),
        ("Beyond accuracy", beyond_cells(rows), "Of the ten items first in each list."),
        (
            "Beyond accuracy, against the stage before",
            beyond_drift_cells(rows),
            "Differences; 95% intervals where every user has a value.",
        ),
    ):
        if cells_of_it:
            parts += [f"## {title}", _table(cells_of_it), note.strip()]
    parts += [
        "## How it was measured",
        f"Accuracy: {protocol['accuracy']}; {protocol['users']} users, seeds {protocol['seeds']}, targets "
        f"{report['targets_sha256'][:16]}. Speed: {protocol['speed']}. Machine: {machine['cpu']}, {machine['num_cpus']} CPUs, "
        f"GPU: {machine['gpu'] or 'none'}. {report['date']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _plain(name: str) -> str:
    """A name that is no markup."""
    return "".join(char if char.isalnum() or char in " ._-" else "·" for char in name)


def ceiling_sentence(ceiling: Mapping[str, Any]) -> str:
    """What the machine could do, measured in the same run."""
    devices = []
    for device, limits in ceiling.items():
        rates = ", ".join(f"{rate / 1e9:,.0f} G/s in {name}" for name, rate in limits["gemm_per_s"].items())
        devices.append(f"{device}: {rates}; {limits['bytes_per_s'] / 1e9:,.1f} GB/s")
    return (
        f"Of the limit: the time that matrix products or a copy of the weights would take at the best pace measured here "
        f"({'; '.join(devices)}), over the time of a call."
    )


def full_depth_sentence(full: Mapping[str, Any]) -> str:
    """What `x full depth` is against; empty where it was not measured."""
    if "throughput_per_s" not in full:
        return ""
    return (
        f"The teacher's LLM at full depth ({full['num_layers']} layers; untrained, for speed and parameters only) completes "
        f"{full['throughput_per_s']:,.1f} histories/s ({full['precision']}) with {full['num_parameters']:,} parameters."
    )


def not_measured(report: Mapping[str, Any]) -> list[str]:
    """What could not be measured beside the rows, and why."""
    return [f"{name}: {why}" for name, why in report.get("not_measured", {}).items()]


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
        "same items": lambda row: f"{row['drift']['overlap']:.1%}",
        "rank correlation": lambda row: _number("kendall_tau", ".3f")(row["drift"]),
        "same order (RBO)": lambda row: f"{row['drift']['rank_biased_overlap']:.3f}",
    }
    return cells(columns, drifted) if drifted else []


def slice_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of accuracy by slice; empty where nothing was ranked."""

    def cell(name: str) -> Callable[[Rows], str]:
        return lambda row: f"{own['ndcg_at_10']:.4f}, {own['hr_at_10']:.4f}" if (own := row["slices"].get(name)) else "-"

    judged = [row for row in rows if "slices" in row]
    users = {name: own["users"] for row in judged for name, own in row["slices"].items()}
    columns = {f"{name} ({number:,} users)": cell(name) for name, number in users.items()}
    return cells({"variant": lambda row: row["variant"], **columns}, judged) if judged else []


def latency_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of single requests; empty where none was measured."""

    def quantile(name: str, least: int) -> Callable[[Rows], str]:
        def cell(row: Rows) -> str:
            if row["latency_samples"] < least:
                return "-"
            bound = row["latency_early_stopping_s"].get(name)
            return f"{1e3 * row[f'latency_{name}_s']:.2f}" + (f" (≤ {1e3 * bound:.2f})" if bound else "")

        return cell

    timed = [row for row in rows if "latency_samples" in row]
    columns: dict[str, Callable[[Rows], str]] = {
        "variant": lambda row: row["variant"],
        "requests": _number("latency_samples", ","),
        "p50 ms": quantile("p50", 1),
        "p90 ms": quantile("p90", 10),
        "p99 ms": quantile("p99", 100),
        "of the limit, alone": _share("single"),
        "in a batch": _share("offline"),
    }
    return cells(columns, timed) if timed else []


def _share(name: str) -> Callable[[Rows], str]:
    return lambda row: _number(name, ".0%")(row.get("share_of_limit", {}))


_BEYOND = {
    "novelty (bits)": ("novelty_bits", ".2f"),
    "diversity in a list": ("intra_list_diversity", ".3f"),
    "coverage": ("coverage", ".1%"),
    "Gini": ("gini", ".3f"),
    "popularity lift": ("popularity_lift", "+.1%"),
    "miscalibration (KL)": ("miscalibration", ".3f"),
}


def beyond_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of what lists are like beyond accuracy; empty where nothing was ranked."""

    def figure(name: str, form: str) -> Callable[[Rows], str]:
        return lambda row: format(row["beyond_accuracy"][name], form)

    judged = [row for row in rows if "beyond_accuracy" in row]
    columns = {name: figure(*key_and_form) for name, key_and_form in _BEYOND.items()}
    return cells({"variant": lambda row: row["variant"], **columns}, judged) if judged else []


def beyond_drift_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of how that differs from the stage before; empty where no variant has one."""

    def figure(name: str, form: str) -> Callable[[Rows], str]:
        form = f"+{form.lstrip('+')}"

        def cell(row: Rows) -> str:
            own = row["drift"]["beyond_accuracy"][name]
            interval = f" [{', '.join(format(end, form) for end in own['ci95'])}]" if own["ci95"] else ""
            return format(own["difference"], form) + interval

        return cell

    drifted = [row for row in rows if "drift" in row]
    columns = {name: figure(*key_and_form) for name, key_and_form in _BEYOND.items()}
    first: dict[str, Callable[[Rows], str]] = {
        "variant": lambda row: row["variant"],
        "stage before": lambda row: row["drift"]["from"],
    }
    return cells(first | columns, drifted) if drifted else []


def rate_cells(rows: Sequence[Rows]) -> list[list[str]]:
    """The table of rates under a bound on p99, medians over rounds; empty where none was searched."""
    searched = [row for row in rows if row.get("max_rate")]

    def held(row: Rows) -> float:
        return float(np.median([found["rate_per_s"] for found in row["max_rate"]]))

    columns: dict[str, Callable[[Rows], str]] = {
        "variant": lambda row: row["variant"],
        "requests/s": lambda row: f"{held(row):,.0f}",
        "judged on": lambda row: f"{min(_held_requests(found) for found in row['max_rate']):,} requests",
        "p99 within ms": lambda row: f"{1e3 * row['max_rate'][0]['max_p99_s']:,.0f}",
        "of offline": lambda row: f"{held(row) / row['throughput_per_s']:.0%}",
    }
    return cells(columns, searched) if searched else []


def _held_requests(found: Mapping[str, Any]) -> int:
    """Requests of the step whose rate was held; 0 where none was."""
    return next((step["requests"] for step in found["steps"] if step["rate_per_s"] == found["rate_per_s"]), 0)


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
