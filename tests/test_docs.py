"""What the documentation says is what the files say: links, targets, the map, and the figures that were copied from results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark.markdown import to_markdown
from tools import recipe_reference

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/results"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def flat(page: Path) -> str:
    """The page with every run of white space as one space: where lines break says nothing."""
    return " ".join(text_of(page).split())


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def percent(own: dict[str, Any]) -> str:
    low, high = own["ci95"]
    return f"{100 * own['relative']:+.1f}% [{100 * low:+.1f}%, {100 * high:+.1f}%]"


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name) if name else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pages
def test_targets_that_are_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    lines = re.findall(r"(?:^    |`)make ((?:[a-z][a-z-]*(?: |`|$))+)", text_of(page), re.MULTILINE)
    assert {word for line in lines for word in line.strip("` ").split()} <= targets


def test_every_key_of_a_recipe_is_told() -> None:
    assert text_of(ROOT / "docs/recipe.md") == recipe_reference.reference(), "python tools/recipe_reference.py > docs/recipe.md"


def test_the_map_names_every_file() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| (.+) \|$", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    assert {folder for folder, _ in rows} == {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    for folder, told in rows:
        there = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py", "__main__.py", "config.py"}
        there |= {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}
        assert set(re.findall(r"`(\w+\.py|\w+/)`", told)) - {"config.py"} == there


def test_ml_100k_is_told_as_it_was_measured() -> None:
    told = to_markdown(result("ml-100k.json"))
    assert text_of(RESULTS / "ml-100k.md") == told
    assert next(part for part in told.split("\n\n") if part.startswith("| variant")) in text_of(ROOT / "README.md")


def of_games() -> Iterator[str]:
    measured = result("distill-amazon18-games.json")
    for arm, own in measured["arms"].items():
        low, high = (f"{end:.4f}"[1:] for end in own["ndcg_at_10_ci95"])
        hr = f"{own['hr_at_10']:.4f}"[1:]
        label = {"teacher": "teacher (4 layers, full tuning)"}.get(arm, arm)
        over = measured["comparisons"].get(f"{arm} over control-text")
        told = f"{percent(over)} " if over else ""
        yield f"| {label} | {own['ndcg_at_10']:.4f}".replace("0.", ".", 1) + f" [{low}, {high}] | {hr} | {told}|"


@pytest.mark.parametrize("line", of_games())
def test_games_is_told_as_it_was_measured(line: str) -> None:
    assert line in flat(ROOT / "README.md")


def of_ablation() -> Iterator[str]:
    for name, row in result("ablation-amazon18-games.json")["rows"].items():
        yield f"| {name} | {' | '.join(percent(row[part]['over_control_text']) for part in ('validation', 'test'))} |"


def of_words() -> Iterator[str]:
    """Words against the LLM's vectors: of each file the rows as they are told, and the last beside the first."""
    reads = {
        "all": {
            "forward_kl": "the LLM's vectors (`ease-text`), as the recipe has it",
            "taught by control-text and ease-words": "the words of the titles",
        },
        "words": {
            "forward_kl": "`control-text` and `ease-text`, as the recipe has it",
            "view of words": "itself, not taught",
            "taught by control-text, view of words and ease-text": "both networks, averaged",
        },
    }
    for file, told in reads.items():
        rows = result(f"ablation-amazon18-games-{file}.json")["rows"]
        for name, what in told.items():
            over = (percent(rows[name][part]["over_control_text"]) for part in ("validation", "test"))
            yield f"| {name}: {what} | {' | '.join(over)} |"
        yield "{} / **{}** over the first".format(
            *(percent(rows[[*told][-1]][part]["over_forward_kl"]) for part in ("validation", "test"))
        )


@pytest.mark.parametrize("line", [*of_ablation(), *of_words()])
def test_the_ablation_of_games_is_told_as_it_was_measured(line: str) -> None:
    assert line in flat(RESULTS / "README.md")


def of_gate() -> Iterator[str]:
    ledger = result("gate.json")
    tight = ledger["aa_tight"]
    done, planned = ledger["runs_done"], ledger["runs_planned"]
    of_all = f"All {planned} runs" if done == planned else f"Of the {planned} runs"
    yield f"{of_all} that are planned {'have' if done == planned else f'{done} have'} been made"
    for label, hog in (("identical sides, budget 1.05", "aa_idle"), ("beside other work", "aa_beside_hog")):
        own, beside = ledger[hog], hog == "aa_beside_hog"
        failed = sum(
            run["verdict"] == "FAIL" and not run["slowdown"] and run["budget"] == 1.05 and run["hog"] == beside
            for run in ledger["runs"]
        )
        yield f"| {label} | {own['runs']} | {failed} | {own['unfit'] + own['inconclusive']} |"
    yield f"| identical sides, 1.02 | {tight['runs']} | {tight['false_alarms']} | {tight['unfit'] + tight['inconclusive']} |"
    for own in ledger["planted"]:
        label = "beside other work" if own["hog"] else f"{own['slowdown']:.0%} slower, {own['budget']}"
        yield f"| {label} | {own['runs']} | {own['caught']} | {own['unfit'] + own['inconclusive']} |"


@pytest.mark.parametrize("line", of_gate())
def test_the_proof_of_the_gate_is_told_as_it_was_measured(line: str) -> None:
    assert line in flat(ROOT / "docs/gate.md")
