"""`recdistill bench compare A.json B.json`: two reports side by side, and a warning where they cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.report import REPORT_SCHEMA
from foundation import console
from foundation.content import ContentError, read_json

_FIGURES = ("ndcg_at_10", "latency_p50_s", "latency_p99_s", "throughput_per_s", "peak_rss_bytes", "artifact_bytes")


class ReportError(ValueError):
    """A file that is no report, or of a schema this version does not read."""


def compare(one_file: Path, other_file: Path) -> dict[str, Any]:
    """Ratios of the second report to the first for every variant in both, the variants in one alone, and what is amiss.

    Accuracy differences are unpaired (a report keeps means and intervals): `apart` are those whose 95% intervals of NDCG@10 do
    not meet. Speeds of two runs may differ by the hour of the day: for a verdict use the gate, which compares within one run.
    """
    one, other = _read(one_file), _read(other_file)
    rows, other_rows = ({row["variant"]: row for row in report["rows"]} for report in (one, other))
    return {
        "warnings": _warnings(one, other),
        "variants": {
            name: {key: other_rows[name][key] / rows[name][key] for key in _FIGURES if _both(rows[name], other_rows[name], key)}
            for name in rows
            if name in other_rows
        },
        "apart": [name for name in rows if name in other_rows and _apart(rows[name], other_rows[name])],
        "failed": {
            f"{name} in the {which}": row["status"]
            for which, own in (("first", rows), ("second", other_rows))
            for name, row in own.items()
            if row["status"] != "ok"
        },
        "only_in_first": sorted(rows.keys() - other_rows.keys()),
        "only_in_second": sorted(other_rows.keys() - rows.keys()),
    }


def to_text(found: Mapping[str, Any]) -> str:
    """The comparison as a table of changes."""
    lines = [f"warning: {warning}" for warning in found["warnings"]]
    lines.append(f"{'variant':<16}" + "".join(f"{key:>18}" for key in _FIGURES))
    for name, ratios in found["variants"].items():
        changes = [f"{ratios[key] - 1:+.1%}" if key in ratios else "-" for key in _FIGURES]
        changes[0] += " *" if name in found["apart"] else ""
        lines.append(f"{name:<16}" + "".join(f"{change:>18}" for change in changes))
    lines += ["* the 95% intervals do not meet"] if found["apart"] else []
    lines += [f"{name}: {status}" for name, status in found["failed"].items()]
    lines += [f"only in the first: {name}" for name in found["only_in_first"]]
    lines += [f"only in the second: {name}" for name in found["only_in_second"]]
    return "\n".join(lines)


class _Row(BaseModel):
    variant: str
    status: str
    ndcg_at_10: float | None = None
    ndcg_at_10_ci95: tuple[float, float] | None = None
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    throughput_per_s: float | None = None
    peak_rss_bytes: float | None = None
    artifact_bytes: float | None = None


class _Machine(BaseModel):
    model_config = ConfigDict(extra="allow")

    versions: dict[str, str] = {}
    sources_sha256: str | None = None


class _Report(BaseModel):
    """What a comparison reads of a report."""

    schema_version: int
    rows: list[_Row]
    targets_sha256: str
    environment: _Machine
    protocol: Any = None


def _read(path: Path) -> dict[str, Any]:
    try:
        report = _Report.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ReportError(f"{path} is no report ({console.one_line(reason)}); one is made by make bench") from None
    except (OSError, ContentError) as error:
        raise ReportError(f"{path} is no report ({error}); one is made by make bench") from None
    if report.schema_version > REPORT_SCHEMA:
        raise ReportError(
            f"{path} has report schema {report.schema_version}, this version reads up to {REPORT_SCHEMA}; update RecDistill"
        )
    return report.model_dump()


def _warnings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    found = []
    if one["targets_sha256"] != other["targets_sha256"]:
        found.append("the reports have other targets (data or split): their accuracies cannot be compared")
    for key in ("cpu", "cpu_flags", "gpu", "num_cpus", "num_threads"):
        if one["environment"].get(key) != other["environment"].get(key):
            found.append(f"{key}: {one['environment'].get(key)} and {other['environment'].get(key)}: speeds cannot be compared")
    libraries, others = (report["environment"]["versions"] for report in (one, other))
    for name in sorted(libraries.keys() | others.keys()):
        if libraries.get(name) != others.get(name):
            found.append(f"{name}: {libraries.get(name, 'none')} and {others.get(name, 'none')}")
    code = [report["environment"]["sources_sha256"] for report in (one, other)]
    if None in code:
        found.append("a report does not say by which code of ours it was measured")
    elif code[0] != code[1]:
        found.append("the reports were measured by different code of ours")
    if one.get("protocol") != other.get("protocol"):
        found.append("the reports were measured by different protocols")
    return found


def _apart(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    own, others = row["ndcg_at_10_ci95"], other["ndcg_at_10_ci95"]
    return bool(own and others) and (own[1] < others[0] or others[1] < own[0])


def _both(row: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    return bool(row.get(key)) and other.get(key) is not None
