"""The report as Markdown and as a page, in a real browser where there is one, and the comparison of two reports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark.accuracy import ALL, headlines
from benchmark.compare import ReportError, compare, to_text
from benchmark.html import to_html
from benchmark.markdown import to_markdown, to_terminal
from benchmark.plots import _front
from recdistill.cli import main

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


BEYOND = ("novelty_bits", "intra_list_diversity", "coverage", "gini", "popularity_lift", "miscalibration")
WHOLE = ("coverage", "gini", "popularity_lift")  # of the whole catalogue, not of a user


def difference(relative: float) -> dict[str, Any]:
    return {"relative": relative, "ci95": [relative - 0.01, relative + 0.01]}


def row(variant: str, ndcg: float, latency_s: float, **more: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "status": "ok",
        "runtime": "onnxruntime cpu",
        "precision": "fp32",
        "artifact_bytes": 1 << 20,
        "artifact_digest": "0" * 64,
        "hr_at_10": 2 * ndcg,
        "ndcg_at_10": ndcg,
        "ndcg_at_10_ci95": [ndcg - 0.01, ndcg + 0.01],
        "latency_p50_s": latency_s,
        "latency_p99_s": 2 * latency_s,
        "latency_p90_s": 1.5 * latency_s,
        "latency_early_stopping_s": {"p90": 1.6 * latency_s},
        "latency_samples": 500,
        "share_of_limit": {"single": 0.02, "offline": 0.4},
        "slices": {"tail items": {"users": 90, "ndcg_at_10": ndcg / 2, "hr_at_10": ndcg}},
        "throughput_per_s": 1 / latency_s,
        "peak_rss_bytes": 1 << 27,
        "num_parameters": 1000,
        "beyond_accuracy": dict.fromkeys(BEYOND, 0.5),
        **more,
    }


DRIFT = {
    "all users": difference(-0.002),
    "head items": difference(0.001),
    "tail items": difference(-0.04),
    "long histories": {"relative": -0.05, "ci95": [-0.09, -0.01], "ci95_of_family": [-0.11, 0.02]},
    "cold items": None,
}
REPORT: dict[str, Any] = {
    "schema_version": 5,
    "date": "2026-01-01",
    "dataset": "<script>alert(1)</script>",
    "targets_sha256": "ab" * 32,
    "environment": {
        "cpu": "a CPU & more",
        "gpu": "",
        "num_cpus": 2,
        "num_threads": 2,
        "versions": {"python": "3.11"},
        "sources_sha256": "cd",
    },
    "protocol": {"accuracy": "full ranking", "users": 943, "seeds": [0, 1], "speed": "5 rounds"},
    "full_depth_teacher": {},
    "rows": [
        row("popularity", 0.04, 1e-4),
        row("control-text", 0.116, 3e-4),
        row("teacher", 0.117, 1e-2),
        row("student", 0.115, 3.1e-4),
        row(
            "student-int8",
            0.1148,
            2.9e-4,
            drift={
                "from": "student",
                "overlap": 0.97,
                "rank_biased_overlap": 0.96,
                "kendall_tau": None,
                "ndcg_at_10": DRIFT,
                "beyond_accuracy": {
                    name: {
                        "difference": -0.02,
                        "ci95": None if name in ("coverage", "gini", "popularity_lift") else [-0.03, 0.01],
                    }
                    for name in BEYOND
                },
            },
        ),
        {"variant": "student-trt", "status": "not made: no GPU"},
    ],
    "catalogue_sweep": [],
    "training": {"student": [{"epoch": epoch, "validation_ndcg_at_10": 0.1 + epoch / 100} for epoch in range(3)]},
    "comparisons": {"student-int8 over student": difference(-0.002)},
}
SAMPLES = {"student": np.random.default_rng(0).lognormal(-8, 0.1, 300).tolist(), "teacher": [0.01] * 50}


def test_the_headline_is_the_slice_that_lost() -> None:
    (line,) = headlines(REPORT["rows"])
    assert line.text == ("student-int8: NDCG@10 -0.2% [-1.2%, +0.8%] overall; worst slice: tail items -4.0% [-5.0%, -3.0%]")
    assert line.unknown == "too few hits to tell: cold items"
    assert line.lost
    calm = {**REPORT["rows"][4], "drift": {**REPORT["rows"][4]["drift"], "ndcg_at_10": {ALL: difference(0.0)}}}
    assert not headlines([calm])[0].lost
    doubtful = {ALL: difference(0.0), "long histories": DRIFT["long histories"]}  # by its own interval alone
    line = headlines([{**calm, "drift": {**calm["drift"], "ndcg_at_10": doubtful}}])[0]
    assert "worst slice: long histories -5.0%" in line.text and not line.lost


def test_markdown() -> None:
    text = to_markdown(REPORT)
    assert "- student-int8: NDCG@10 -0.2%" in text
    assert "| student-int8 | student | -0.2% [-1.2%, +0.8%] | +0.1% [-0.9%, +1.1%] | -4.0% [-5.0%, -3.0%] | " in text
    assert " | -5.0% [-9.0%, -1.0%] | - | 97.0% | - | 0.960 |" in text
    assert "| student-int8 | 500 | 0.29 | 0.43 (≤ 0.46) | 0.58 | 2% | 40% |" in text
    assert "| variant | tail items (90 users) |" in text and "| popularity | 0.0200, 0.0400 |" in text
    assert "| student-int8 | student | -0.02 [-0.03, +0.01] | -0.020 [-0.030, +0.010] | -2.0% | -0.020 | -2.0% |" in text
    shown = to_terminal({**REPORT, "not_measured": {"machine": "out of memory"}})
    assert shown.endswith("\n    too few hits to tell: cold items\nnot measured: machine: out of memory")
    assert max(map(len, shown.splitlines())) < 120 and "What compression changed:\n  student-int8: NDCG@10 -0.2%" in shown
    assert "student-trt   -" in shown and "not made: no GPU" in shown
    assert "| student-trt | - |" in text
    assert "not made: no GPU" in text


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]


def test_the_page_holds_everything_it_shows() -> None:
    text = to_html(REPORT, SAMPLES)
    page = Page(text)
    assert page.tags.count("svg") == 4
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)", text)
    assert "&lt;script&gt;" in text
    assert 'class="lost"' in text
    assert text == to_html(REPORT, SAMPLES)


def test_a_server_whose_memory_and_bytes_nobody_knows() -> None:
    served = row("student-endpoint", 0.1, 2e-3, artifact_bytes=None, peak_rss_bytes=None, share_of_limit={})
    report = {**REPORT, "rows": [*REPORT["rows"], served]}
    assert "student-endpoint" in to_html(report, SAMPLES)
    assert "| student-endpoint | 0.1000 [0.0900, 0.1100] | 0.2000 | 2.00 | 500 | - | - | - | 1,000 | - |" in to_markdown(report)
    assert "student-endpoint" in to_html({**report, "rows": [served]}, SAMPLES)


def test_what_only_a_gpu_has() -> None:
    rows = [row("student", 0.1, 1e-3), row("teacher", 0.1, 1e-2, peak_gpu_bytes=3 << 20, joules_per_history=0.0125)]
    text = to_markdown({**REPORT, "rows": rows})
    assert "| GPU MiB (torch) | mJ a history |" in text and "| 3 | 12.5 |" in text and "GPU MiB (process)" not in text
    assert "mJ a history" in to_html({**REPORT, "rows": rows}, SAMPLES) and "GPU MiB" not in to_markdown(REPORT)


def test_what_only_the_full_benchmark_measures() -> None:
    tried = [{"rate_per_s": rate, "p99_s": 0.01, "requests": number} for rate, number in ((450.0, 1500), (900.0, 2700))]
    step = {"rate_per_s": 900.0, "max_p99_s": 0.05, "steps": tried}
    batches = [[{"batch_size": 1, "call_s": 1e-3}, {"batch_size": 2, "call_s": 1.5e-3}], [{"batch_size": 1, "call_s": 1e-3}]]
    sweep = [
        {"num_items": 1000, "status": "ok", "latency_p50_s": 1e-3, "throughput_per_s": 4e3, "peak_rss_bytes": 1 << 27},
        {"num_items": 10**6, "status": "failed: out of memory"},
    ]
    full = {**REPORT, "rows": [row("student", 0.1, 1e-3, max_rate=[step, step], batches=batches)], "catalogue_sweep": sweep}
    text = to_markdown(full)
    assert "| student | 900 | 2,700 requests | 50 | 90% |" in text
    assert "| 1,000 | 1.00 | 4,000 | 128 | ok |" in text and "| 1,000,000 | - | - | - | failed: out of memory |" in text
    page = to_html(full, SAMPLES)
    assert Page(page).tags.count("svg") == 5  # no drift here
    for name in ("Requests at random instants", "Batches", "Larger catalogues"):
        assert name in page and name not in to_html(REPORT, SAMPLES)


def test_a_report_of_failures_alone_is_still_a_page() -> None:
    broken = {**REPORT, "rows": [{"variant": "student", "status": "failed: out of memory"}], "comparisons": {}, "training": {}}
    assert "failed: out of memory" in to_html(broken, {})


def test_the_front() -> None:
    assert _front([(1, 5), (2, 4), (3, 9), (0.5, 1), (3, 8)]) == [(0.5, 1), (1, 5), (3, 9)]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_on_a_phone_and_on_a_desk(tmp_path: Path, width: int) -> None:
    (tmp_path / "report.html").write_text(to_html(REPORT, SAMPLES))
    browse(tmp_path, "--hide-scrollbars", f"--window-size={width},3000", f"--screenshot={tmp_path / 'shot.png'}")
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("L"))
    assert pixels.shape == (3000, width)
    dark_rows, dark_columns = (np.flatnonzero((pixels < 200).any(axis=axis)) for axis in (1, 0))
    assert dark_rows[-1] > 1500, "the page is cut short"
    assert dark_columns[0] < width / 4 and dark_columns[-1] > width / 2
    assert len(np.unique(pixels)) > 50


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_it_prints(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(REPORT, SAMPLES))
    browse(tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 8


def browse(folder: Path, *options: str) -> None:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *options, (folder / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text(json.dumps(REPORT))
    changed = json.loads(one.read_text())
    changed["rows"][3] |= {"ndcg_at_10": 0.115 * 1.1, "latency_p50_s": 6.2e-4}
    changed["rows"][0]["variant"] = "item-knn"
    other.write_text(json.dumps(changed))
    found = compare(one, other)
    assert found["warnings"] == []
    assert found["variants"]["student"]["ndcg_at_10"] == pytest.approx(1.1)
    assert found["variants"]["student"]["latency_p50_s"] == pytest.approx(2.0)
    assert found["variants"]["student-trt"] == {}
    assert found["failed"]["student-trt in the second"] == "not made: no GPU"
    assert found["apart"] == []
    assert (found["only_in_first"], found["only_in_second"]) == (["popularity"], ["item-knn"])
    assert main(["bench", "compare", str(one), str(other)]) == 0
    assert re.search(r"student +\+10\.0% +\+100\.0%", capsys.readouterr().out)
    changed["rows"][3]["ndcg_at_10_ci95"] = [0.13, 0.15]
    machine = {"cpu": "another", "cpu_flags": ["avx2"], "versions": {"python": "3.12", "onnx": "1.20"}}
    changed |= {"targets_sha256": "cd" * 32, "environment": {**REPORT["environment"], **machine}}
    other.write_text(json.dumps(changed))
    found = compare(one, other)
    assert found["apart"] == ["student"] and "+10.0% *" in to_text(found)
    warnings = found["warnings"]
    assert [("cannot be compared" in warning) for warning in warnings] == [True, True, True, False, False]
    assert warnings[3:] == ["onnx: none and 1.20", "python: 3.11 and 3.12"]
    assert "warning: " in to_text(compare(one, other))
    for sources, warning in (("ef", "were measured by different code of ours"), (None, "does not say by which code")):
        other.write_text(json.dumps({**REPORT, "environment": {**REPORT["environment"], "sources_sha256": sources}}))
        (told,) = compare(one, other)["warnings"]
        assert warning in told


@pytest.mark.parametrize(("content", "message"), [("{", "is no report"), ("[]", "is no report"), ("{}", "is no report")])
def test_what_is_no_report(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ReportError, match=message):
        compare(tmp_path / "a.json", tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps({**REPORT, "schema_version": 99}))
    with pytest.raises(ReportError, match="update RecDistill"):
        compare(tmp_path / "a.json", tmp_path / "a.json")
