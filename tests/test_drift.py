"""Slow drift over the gate's history. The change points themselves need apache-otava's own environment (make test-network)."""

from __future__ import annotations

import json
import random
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tools.drift import HistoryError, metrics, of_one_base, read


def write_history(path: Path, levels: list[float], base: str = "v1 (abc)") -> Path:
    rng, start = random.Random(0), datetime(2026, 1, 1, tzinfo=UTC)
    with path.open("a") as stream:
        for number, level in enumerate(levels):
            ratios = {"latency_p50": level * rng.gauss(1, 0.005), "ndcg_at_10": 1.0}
            stream.write(
                json.dumps(
                    {
                        "date": (start + timedelta(hours=number)).isoformat(),
                        "commit": f"c{number}",
                        "base": base,
                        "metrics": {name: {"ratio": ratio} for name, ratio in ratios.items()},
                    }
                )
                + "\n"
            )
    return path


def test_only_checks_against_one_base_belong_together(tmp_path: Path) -> None:
    history = write_history(tmp_path / "h.jsonl", [1.0] * 13, "v1")
    write_history(history, [1.0] * 12, "v2")
    write_history(history, [1.0] * 3, "v3")
    with history.open("a") as stream:
        stream.write(json.dumps({"date": "2026-02-01T00:00:00Z", "base": "v2", "metrics": {}}) + "\n")  # nothing was compared
        unfit = {"latency_p50": {"ratio": 1.4, "ci95": [1.3, 1.5]}, "peak_rss": {"ratio": 1.2}}
        told = {
            "date": "2026-02-02T00:00:00Z",
            "base": "v1",
            "metrics": unfit,
            "verdict": "FAIL",
            "reason": "base against itself",
        }
        stream.write(json.dumps(told) + "\n")
        stream.write(json.dumps(told | {"base": "v3", "metrics": {"latency_p50": unfit["latency_p50"]}}) + "\n")
    checks = read(history)
    assert checks[-1]["ratios"] == {"peak_rss": 1.2}
    checks.pop()
    assert [len(of_one_base(checks, base)) for base in ("v1", "v2")] == [13, 12]
    with pytest.raises(HistoryError, match="against v3 are too few: 3, and 10 are needed"):
        of_one_base(checks, "")
    with pytest.raises(HistoryError, match="no check against v4; there are checks against: v1, v2, v3"):
        of_one_base(checks, "v4")


def test_checks_of_another_checkpoint_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = read(write_history(tmp_path / "h.jsonl", [1.0] * 24))
    for number, check in enumerate(checks):
        check["checkpoint"] = "" if number < 6 else "wide" if number < 12 else "narrow"
    assert [check["commit"] for check in of_one_base(checks, "")] == [f"c{number}" for number in (*range(6), *range(12, 24))]
    assert "6 checks of another checkpoint" in capsys.readouterr().err


def test_a_metric_measured_too_seldom_is_said_to_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = read(write_history(tmp_path / "h.jsonl", [1.0] * 12))
    for check in checks[:9]:
        check["ratios"]["peak_rss"] = 1.0
    assert metrics(checks) == ["latency_p50", "ndcg_at_10"]
    assert "peak_rss is left out: measured 9 times" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        '{"metrics": {"a": {"ratio": NaN}}, "date": "2026-01-01"}',
        '{"metrics": {"a": {"ratio": "x"}}}',
        '{"metrics": {}, "date": "today"}',
        "\0",
    ],
)
def test_what_is_no_check_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    history = write_history(tmp_path / "h.jsonl", [1.0])
    history.write_text(history.read_text() + line + "\n")
    with pytest.raises(HistoryError, match="line 2 is no check of the gate"):
        read(history)


@pytest.mark.network
@pytest.mark.parametrize(
    ("levels", "code"),
    [
        ([1.0] * 40, 0),
        ([1.0 + 0.001 * n for n in range(40)], 1),  # each change 0.1%: no check would notice
        ([1.0] * 20 + [0.95] * 20, 0),  # faster
        ([1.0] * 3, 2),
    ],
)
def test_drift_is_found(tmp_path: Path, levels: list[float], code: int) -> None:
    subprocess.run(["make", ".venv-drift/.installed"], check=True)
    history = write_history(tmp_path / "h.jsonl", levels)
    done = subprocess.run([".venv-drift/bin/python", "tools/drift.py", history], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if code < 2:
        points = json.loads(done.stdout.splitlines()[-1])["change_points"]
        assert [bool(points), any(point["worse"] for point in points)] == [levels[0] != levels[-1], code == 1]
