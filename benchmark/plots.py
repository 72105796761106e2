"""The plots of the report, as SVG text that stands inside the page: no file, no script, no request."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from benchmark.accuracy import ALL

_COLOURS = {"teacher": "#c2410c", "student": "#1d4ed8", "control": "#15803d", "other": "#6b7280"}
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
_POWERS = (1, 4, 16, 64, 256)
Rows = Sequence[Mapping[str, Any]]


def pareto(rows: Rows) -> str:
    """NDCG@10 against latency; the area of a bubble is the variant's bytes, the line what nothing else beats."""
    shown = [row for row in rows if row.get("latency_p50_s") and "ndcg_at_10" in row]
    figure, axes = _axes(height=3.8)
    largest = max((row["artifact_bytes"] or 0 for row in shown), default=0) or 1
    areas = {row["variant"]: 12 + 900 * (row["artifact_bytes"] or 0) / largest for row in shown}
    for row in sorted(shown, key=lambda row: -areas[row["variant"]]):  # the small ones on top
        x, y = row["latency_p50_s"] * 1e3, row["ndcg_at_10"]
        low, high = row["ndcg_at_10_ci95"]
        colour = colour_of(row["variant"])
        axes.errorbar(x, y, [[y - low], [high - y]], color=colour, alpha=0.35, linewidth=1)
        axes.scatter(x, y, s=areas[row["variant"]], color=colour, alpha=0.55, linewidths=0)
    front = _front([(row["latency_p50_s"] * 1e3, row["ndcg_at_10"]) for row in shown])
    axes.plot([x for x, _ in front], [y for _, y in front], color="#9ca3af", linewidth=1, linestyle="--", zorder=0)
    axes.set(xscale="log", xlabel="latency of one request, median, ms", ylabel="NDCG@10 (95% interval)")
    axes.margins(x=0.15, y=0.12)
    points = {row["variant"]: (row["latency_p50_s"] * 1e3, row["ndcg_at_10"]) for row in shown}
    _label(figure, axes, points, {name: area**0.5 / 2 for name, area in areas.items()})
    return _svg(figure)


def latencies(samples_s: Mapping[str, Sequence[float]]) -> str:
    """For every variant the share of requests answered within a time."""
    figure, axes = _axes(height=3.8)
    styles = _Styles()
    for variant, own in samples_s.items():
        share = np.arange(1, len(own) + 1) / len(own)
        axes.plot(np.sort(own) * 1e3, share, label=variant, linewidth=1.3, **styles.of(variant))
    axes.set(xscale="log", xlabel="ms", ylabel="share of requests answered", ylim=(0, 1.01))
    _legend_below(axes)
    return _svg(figure)


def batches(rows: Rows) -> str:
    """Histories a second against the batch size, medians over rounds."""
    figure, axes = _axes(height=3.8)
    styles = _Styles()
    for row in rows:
        rounds = row.get("batches")
        if not rounds:
            continue
        sizes = [step["batch_size"] for step in min(rounds, key=len)]
        call_RS = np.array([[step["call_s"] for step in own[: len(sizes)]] for own in rounds])
        axes.plot(sizes, sizes / np.median(call_RS, axis=0), label=row["variant"], linewidth=1.3, **styles.of(row["variant"]))
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="histories/s")
    axes.set_xticks(_POWERS, [str(size) for size in _POWERS], minor=False)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    _legend_below(axes)
    return _svg(figure)


def catalogue(sweep: Sequence[Mapping[str, Any]]) -> str:
    """Time of a request alone and in a batch against the number of items."""
    figure, axes = _axes(height=3.2)
    shown = [point for point in sweep if point["status"] == "ok"]
    sizes = [point["num_items"] for point in shown]
    alone, batched = ([1e3 * point["latency_p50_s"] for point in shown], [1e3 / point["throughput_per_s"] for point in shown])
    axes.plot(sizes, alone, "o-", color=_COLOURS["student"], label="one request", linewidth=1.3)
    axes.plot(sizes, batched, "o--", color=_COLOURS["student"], label="one history of a batch", linewidth=1.3)
    axes.set(xscale="log", yscale="log", xlabel="items in the catalogue", ylabel="ms")
    _legend_below(axes)
    return _svg(figure)


def training(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The score on validation, epoch by epoch."""
    figure, axes = _axes(height=3.2)
    styles = _Styles()
    for variant, epochs in curves.items():
        score = [epoch["validation_ndcg_at_10"] for epoch in epochs]
        axes.plot(np.arange(1, len(score) + 1), score, label=variant, linewidth=1.3, **styles.of(variant))
    axes.set(xlabel="epoch", ylabel="NDCG@10 on validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(axes)
    return _svg(figure)


def drift(rows: Rows) -> str:
    """NDCG@10 against the stage before, overall and by slice, with intervals; a slice too small to tell is left out."""
    shown = [row for row in rows if row.get("drift")]
    names = list(dict.fromkeys(name for row in shown for name, found in row["drift"]["ndcg_at_10"].items() if found))
    figure, axes = _axes(height=1.2 + 0.28 * max(len(shown) * len(names), 1))
    position, ticks, labels = 0.0, [], []
    for row in shown:
        for name in names:
            if not (found := row["drift"]["ndcg_at_10"].get(name)):
                continue
            value, (low, high) = found["relative"], found["ci95"]
            colour = colour_of(row["variant"])
            axes.barh(position, value * 100, color=colour, alpha=0.8 if name == ALL else 0.4)
            axes.plot([low * 100, high * 100], [position, position], color="#374151", linewidth=1)
            ticks.append(position)
            labels.append(f"{row['variant']} / {row['drift']['from']}" if name == ALL else name)
            position += 1
        position += 0.6
    axes.axvline(0, color="#374151", linewidth=0.8)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="NDCG@10, % (95% interval)")
    axes.margins(y=0.01)
    return _svg(figure)


def colour_of(variant: str) -> str:
    """One colour for each family of variants."""
    return _COLOURS.get(variant.split("-")[0], _COLOURS["other"])


class _Styles:
    """A colour for each family of variants, and a dash for each of its members."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}

    def of(self, variant: str) -> dict[str, Any]:
        """What the next line of this family looks like."""
        colour = colour_of(variant)
        number = self.used[colour] = self.used.get(colour, -1) + 1
        return {"color": colour, "linestyle": _DASHES[number % len(_DASHES)]}


def _legend_below(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other is both faster and better than, by latency."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _label(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]], radius_of: Mapping[str, float]) -> None:
    """A name beside every bubble (radii in points), each where it covers no other name and no large bubble."""
    figure.draw_without_rendering()
    centres = {name: axes.transData.transform(point) * 72 / figure.dpi for name, point in points.items()}
    large = {name: radius for name, radius in radius_of.items() if radius > 4}
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in ((centres[name], radius) for name, radius in large.items())]
    for name, point in sorted(points.items(), key=lambda entry: entry[1][1]):
        x, y = centres[name]
        width, height, beside = 4.6 * len(name), 9.0, radius_of[name] + 3
        sides = [(dx, dy) for dy in (-3, 9, -15, 21, -27, 33, -39, 45, -51, 57) for dx in (beside, -width - beside)]
        places = [*sides[:2], (-width / 2, beside), (-width / 2, -beside - height), *sides[2:]]
        boxes = [(dx, dy, (x + dx, y + dy, x + dx + width, y + dy + height)) for dx, dy in places]
        dx, dy, box = next((entry for entry in boxes if not any(_overlap(entry[2], other) for other in taken)), boxes[0])
        taken.append(box)
        line = {"arrowstyle": "-", "color": "#d1d5db", "linewidth": 0.6} if abs(dy) > 12 else None
        axes.annotate(name, point, (dx, dy), textcoords="offset points", fontsize=8, color=colour_of(name), arrowprops=line)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as scalable SVG; its text stays text."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "recdistill"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest  # the page decides how large it is
