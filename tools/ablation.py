"""What every objective, regulariser and teacher of ours is worth, one by one, on a fixed sample of a dataset's users.

    python tools/ablation.py --recipe recipes/amazon18-games.toml --data FOLDER --users 10000 --jobs 12

The recipe's chain is made once, for one seed, with the teacher alone as who teaches by forward_kl; every variant below changes
that in one place and has its arm trained anew, at most `--jobs` at a time. Written to docs/results/ablation-DATASET.json after
every variant, so that an interrupted run goes on: NDCG@10 of the kept epoch over all sampled users with its interval and its
paired difference to control-text, on validation and on test. `--only NAME…` names variants, `--set` changes the recipe of all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import polars as pl

from benchmark.environment import environment
from distill.evaluation import kept_history, kept_ranks
from foundation.artifact import Artifact, load
from foundation.recipe import load_recipe
from recdistill.parallel import Task, distill_tasks, make_side_by_side
from recdistill.pipeline import Pipeline
from recdistill.recipe import Recipe, of_folder
from recommender.metrics import bootstrap_ci, ndcg, paired_relative_difference

BASE = "forward_kl"
ALONE = ["seeds=[0]", "distill.ensemble_control=false", "targets.seeds=own", "targets.members={teacher = 1.0}"]
ALONE += [f"distill.objectives={{{BASE} = {{}}}}"]


@dataclass(frozen=True)
class Variant:
    """One row: an arm, and what it changes of the recipe."""

    arm: str
    keys: tuple[str, ...] = ()


def _objectives(*names: str) -> str:
    return f"distill.objectives={{{', '.join(f'{name} = {{}}' for name in names)}}}"


_OTHERS = ("dllm2rec", "rrd", "rce_kd", "hidden", "minilm")
_ENCODER = ("item_encoder.optim.validation_users=0", "teacher.item_init=control-tuned")
VARIANTS = {
    "control-id": Variant("control-id"),
    "control-text": Variant("control-text"),
    "teacher": Variant("teacher"),
    BASE: Variant("student"),
    **{f"{name} alone": Variant("student", (_objectives(name),)) for name in _OTHERS},
    **{f"{BASE} and {name}": Variant("student", (_objectives(BASE, name),)) for name in _OTHERS},
    "all objectives": Variant("student", (_objectives(BASE, *_OTHERS),)),
    **{f"label weight {w}": Variant("student", (f"distill.label_weight={w}",)) for w in ("0.0", "0.2", "1.0")},
    "temperature 3": Variant("student", ("targets.temperature=3.0",)),
    "follow_audit": Variant("student", ("distill.follow_audit=true",)),
    "taught by control-text": Variant("student", ("targets.members={control-text = 1.0}",)),
    "taught by both": Variant("student", ("targets.members={teacher = 1.0, control-text = 1.0}",)),
    **{
        f"control-text, {name}": Variant("control-text", (f"regularisers={{{name} = {{}}}}",))
        for name in ("fgm", "masked_item", "history_contrast", "text_alignment")
    },
    "control-text, layers 8 and 15": Variant("control-text", ("text.layers=[8, 15]",)),
    "teacher reads texts": Variant("teacher", ("teacher.items=text", "teacher.item_init=random")),
    "taught by a reader of texts": Variant("student", ("teacher.items=text", "teacher.item_init=random")),
    "control-tuned": Variant("control-tuned", ("text.layers=[8, 15]", "item_encoder.frozen_layers=8")),
    "tuned vectors, taught": Variant("student", ("text.layers=[8, 15]", "item_encoder.frozen_layers=8", *_ENCODER)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="default: docs/results/ablation-DATASET.json")
    arguments = parser.parse_args()
    data = _sampled(arguments.data, arguments.users, arguments.runs)
    base = _pipeline(arguments, data, "base", ())
    make_side_by_side(
        base,
        [task for task in distill_tasks(base.recipe) if task.method != "arm" or "student" not in task.arguments],
        arguments.jobs,
    )
    out = arguments.out or Path(f"docs/results/ablation-{arguments.data.resolve().name}.json")
    control = load(base.folder / "seed-0" / "control-text")
    with ThreadPoolExecutor(arguments.jobs) as threads:
        made = {threads.submit(_made, arguments, data, base, name): name for name in arguments.only}
        for future in as_completed(made):
            row = _row(VARIANTS[made[future]], future.result(), control)
            print(f"{made[future]}: {row['validation']['ndcg_at_10']:.5f}")
            _write(out, made[future], row, arguments, base)


def _sampled(data: Path, users: int, runs: Path) -> Path:
    """The dataset folder of a fixed sample of users; all items stay."""
    out = runs / f"{data.resolve().name}-{users}"
    if out.exists():
        return out
    interactions = pl.read_parquet(data / "interactions.parquet")
    everyone = interactions["user_id"].unique().sort()
    drawn = everyone.gather(np.sort(np.random.default_rng(0).permutation(len(everyone))[:users]))
    aside = out.with_suffix(".partial")
    aside.mkdir(parents=True, exist_ok=True)
    interactions.join(drawn.to_frame(), on="user_id", how="semi", maintain_order="left").write_parquet(
        aside / "interactions.parquet"
    )
    shutil.copyfile(data / "items.parquet", aside / "items.parquet")
    aside.rename(out)
    return out


def _pipeline(arguments: argparse.Namespace, data: Path, name: str, keys: tuple[str, ...]) -> Pipeline:
    recipe = load_recipe(
        Recipe, arguments.recipe, [*of_folder(data), f"name={json.dumps(name)}", *ALONE, *arguments.set, *keys]
    )
    return Pipeline(recipe, arguments.runs, overwrite=name != "base")  # what a variant changes, it makes anew


def _made(arguments: argparse.Namespace, data: Path, base: Pipeline, name: str) -> Artifact:
    """A variant's arm, in a folder that starts with the base's artefacts (as hard links: nothing is ever changed in place)."""
    variant, folder = VARIANTS[name], name.replace(" ", "-").replace(",", "")
    pipeline = _pipeline(arguments, data, folder, variant.keys)
    if not pipeline.folder.exists():
        shutil.copytree(base.folder, pipeline.folder, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))
    task = Task("teacher", (0,)) if variant.arm == "teacher" else Task("arm", (variant.arm, 0))
    make_side_by_side(pipeline, [task], 1)
    return load(pipeline.folder / "seed-0" / variant.arm)


def _row(variant: Variant, made: Artifact, control: Artifact) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": variant.arm, "changes": list(variant.keys), "epochs": len(kept_history(made))}
    for part in ("validation", "test"):
        own_U, control_U = (ndcg(kept_ranks(artifact, part), 10) for artifact in (made, control))
        row[part] = {
            "ndcg_at_10": float(own_U.mean()),
            "ci95": list(bootstrap_ci(own_U)),
            "over_control_text": paired_relative_difference(own_U, control_U),
        }
    return row | {"targets_sha256": made.metrics["targets_sha256"]}


def _write(out: Path, name: str, row: dict[str, Any], arguments: argparse.Namespace, base: Pipeline) -> None:
    ledger = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    if any(other["targets_sha256"] != row["targets_sha256"] for other in ledger["rows"].values()):
        raise SystemExit(f"{out} holds rows that were judged on other targets; move it away")
    machine = environment(1)
    command = ["python tools/ablation.py", "--recipe", str(arguments.recipe), "--data", arguments.data.name]
    command += ["--users", str(arguments.users), *(word for entry in arguments.set for word in ("--set", entry))]
    ledger["rows"][name] = row | {"hardware": f"{machine['cpu']}, {machine['gpu'] or 'no GPU'}", "command": " ".join(command)}
    ledger |= {"users": len(base.sequences.evaluated_users), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    out.write_text(json.dumps(ledger, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
