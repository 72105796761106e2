"""Verification: one graph in every runtime of this machine, against PyTorch, over the same requests.

ONNX Runtime with its optimizer, without it (node by node), on one thread and on all; OpenVINO held to the graph's precision,
and in the one it chooses by itself. Outside PyTorch and ONNX Runtime tied scores may come in another order, which the overlap
does not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export.config import ExportSection
from export.parity import Lists, Parity, ParityError, Requests, answers, compare
from foundation.artifact import Unavailable
from foundation.failure import first_line, is_library_error, is_machine_error
from recommender.runtimes import open_graph

OWN, FREE = "the graph's", "the runtime's choice"
_WAYS = {  # (runtime, threads): precision it computes in
    ("onnxruntime", 0): OWN,
    ("onnxruntime", 1): OWN,
    ("onnxruntime-plain", 0): OWN,
    ("openvino-fp32", 0): OWN,
    ("openvino", 0): FREE,
}
_ONLY = {"bf16": ("openvino",), "fp8": ("onnxruntime-plain",)}  # what runs graphs of these on a CPU
_BOUND = {"fp32": "min_overlap", "fp16": "min_overlap", "bf16": "min_overlap", "int8": "min_overlap_int8"}


@dataclass(frozen=True)
class Row:
    """One way to run one graph; `parity` is None where it cannot, and `status` says why."""

    graph: str
    precision: str
    runtime: str
    num_threads: int
    parity: Parity | None
    status: str
    failed: bool = False

    def to_dict(self) -> dict[str, Any]:
        parity = self.parity.to_dict() if self.parity else {}
        names = ("graph", "precision", "runtime", "num_threads", "status")
        return {name: getattr(self, name) for name in names} | parity


def runtime_of(precision: str) -> str:
    """The runtime that judges graphs of `precision` on a CPU."""
    return _ONLY.get(precision, ("onnxruntime",))[0]


def verify_graph(
    name: str, graph: Path, precision: str, reference: Lists, requests: Requests, section: ExportSection
) -> Iterator[Row]:
    """Run `graph` in every way this machine has; see `require` for what must hold."""
    ran = False
    for (runtime, num_threads), how in _WAYS.items():
        if runtime.startswith("openvino") and find_spec("openvino") is None:
            continue
        if precision in _ONLY and runtime not in _ONLY[precision]:
            continue
        try:
            lists = answers(open_graph(runtime, graph, num_threads), requests, section.k)
        except Exception as error:
            if is_machine_error(error) or not is_library_error(error) or (precision == "fp32" and how == OWN):
                raise
            reason = first_line(str(error), type(error).__name__)
            yield Row(name, precision, runtime, num_threads, None, f"cannot run it: {reason}")
            continue
        ran = True
        judged = how == OWN or precision in _ONLY
        yield row_of(name, precision, runtime, num_threads, compare(reference, lists, requests), section, judged)
    if not ran:
        raise Unavailable(f"nothing here runs a graph of {precision}; `pip install -e .[openvino]` does")


def row_of(
    name: str, precision: str, runtime: str, num_threads: int, parity: Parity, section: ExportSection, judged: bool = True
) -> Row:
    """A way that ran, held to the bound of its precision where it is `judged`.

    4 bits and fp8 have none: what they lose is judged by their ranking, with the quantizer.
    """
    key = _BOUND.get(precision) if judged else None
    if key and parity.overlap < (bound := getattr(section, key)):
        return Row(name, precision, runtime, num_threads, parity, f"below export.{key} = {bound}", failed=True)
    return Row(name, precision, runtime, num_threads, parity, "ok")


def require(rows: Iterable[Row]) -> list[Row]:
    """The rows; `ParityError` where one of them does not rank as it must."""
    rows = list(rows)
    for row in rows:
        if row.failed and row.parity:
            raise ParityError(
                f"{row.graph} in {row.runtime} and PyTorch agree on only {row.parity.overlap:.4f} of the top items "
                f"({row.status}, largest score difference {row.parity.max_score_difference:.2e}); it is not kept"
            )
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown; NDCG@10 is over PyTorch's, with its 95% interval."""
    names = ("graph", "precision", "runtime", "threads", "status", "overlap@K", "same order", "largest difference", "NDCG@10")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        threads = str(row.num_threads or "all")
        found = ["-"] * 4 if row.parity is None else _figures(row.parity)
        lines.append("| " + " | ".join([row.graph, row.precision, row.runtime, threads, row.status, *found]) + " |")
    return "\n".join(lines)


def _figures(parity: Parity) -> list[str]:
    change = parity.ndcg_at_10
    shown = "-" if change is None else f"{change['relative']:+.1%} [{change['ci95'][0]:+.1%}, {change['ci95'][1]:+.1%}]"
    return [f"{parity.overlap:.4f}", f"{parity.same_order:.4f}", f"{parity.max_score_difference:.1e}", shown]
