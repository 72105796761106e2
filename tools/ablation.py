"""What every objective, regulariser and teacher of ours is worth, one by one, on a fixed sample of a dataset's users.

    python tools/ablation.py --recipe recipes/amazon18-games.toml --users 10000 --jobs 12

The recipe's chain is made once, for seed 0 (others by `--set seeds=[0,1,2]`): its members teach, by forward_kl alone. Every
variant of VARIANTS starts at its artefacts, changes the keys that its row names, and has its arm trained anew, at most
`--jobs` at a time.
Written to docs/results/ablation-DATASET.json after every variant: NDCG@10 of the kept epoch over the sampled users with its
interval and its paired difference to control-text, on validation and on test, each user's mean over seeds; at the end also to
the variant forward_kl, of those whose artefacts are there. What was interrupted, or failed, is gone on from by the same
command; what is there already is neither made nor dated anew.

(To compare finished runs of whole recipes, over all seeds: the phase `ablation` of tools/distill_figures.py.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import polars as pl

from benchmark.accuracy import beside
from benchmark.environment import environment
from distill.config import EASE_TEXT, EASE_WORDS, LINEAR
from distill.evaluation import kept_history, kept_ranks
from foundation.artifact import MANIFEST, Artifact, load, lock, sha256_file, write_atomically
from foundation.recipe import load_recipe
from recdistill.parallel import Task, distill_tasks, make_side_by_side
from recdistill.pipeline import Pipeline
from recdistill.recipe import Recipe, of_folder

OBJECTIVE = "forward_kl"
ALONE = ["seeds=[0]", "distill.ensemble_control=false", "targets.seeds=own", f"distill.objectives={{{OBJECTIVE} = {{}}}}"]
CHAIN = "chain"  # the folder of what all variants start at


@dataclass(frozen=True)
class Variant:
    """One row: an arm, what it changes of the recipe, and the variant at whose artefacts it starts (else the recipe's)."""

    arm: str
    keys: tuple[str, ...] = ()
    start: str = ""


def _objectives(*names: str) -> str:
    return f"distill.objectives={{{', '.join(f'{name} = {{}}' for name in names)}}}"


def _members(*names: str) -> str:
    weights = {name: _WEIGHT if name in LINEAR else 1.0 for name in names}
    return f"targets.members={{{', '.join(f'{name} = {weight}' for name, weight in weights.items())}}}"


_WEIGHT = "WEIGHT"  # of a linear model: what the recipe gives to one, or 50


_OTHERS = ("dllm2rec", "rrd", "rce_kd", "hidden", "minilm")
_READER, _LAYERS = ("teacher.items=text", "teacher.item_init=random"), ("text.layers=[8, 15]",)
_WORDS = ("views.words.encoder=words",)
_TUNED, _LLM = (*_LAYERS, "item_encoder.frozen_layers=8"), _members("teacher", "control-text")
VARIANTS = {
    "control-id": Variant("control-id"),
    "control-text": Variant("control-text"),
    "teacher": Variant("teacher"),
    OBJECTIVE: Variant("student"),  # as the recipe says, by this objective alone, of weight 1
    **{f"{name} alone": Variant("student", (_objectives(name),)) for name in _OTHERS},
    **{f"{OBJECTIVE} and {name}": Variant("student", (_objectives(OBJECTIVE, name),)) for name in _OTHERS},
    "all objectives": Variant("student", (_objectives(OBJECTIVE, *_OTHERS),)),
    **{
        f"all but {name}": Variant("student", (_objectives(*(other for other in (OBJECTIVE, *_OTHERS) if other != name)),))
        for name in (OBJECTIVE, *_OTHERS)
    },
    "label weight 0.2, nothing taught": Variant("student", ("distill.objectives={}", "distill.label_weight=0.2")),
    **{f"label weight {w}": Variant("student", (f"distill.label_weight={w}",)) for w in ("0.0", "0.2", "1.0")},
    **{f"temperature {t}": Variant("student", (f"targets.temperature={t}",)) for t in (1.5, 3.0)},
    "ends": Variant("student", ("targets.ends=true",)),
    "no ends": Variant("student", ("targets.ends=false",)),
    "follow_audit": Variant("student", ("distill.follow_audit=true",), start="control-id"),
    **{f"taught by {name}": Variant("student", (_members(name),)) for name in ("control-text", EASE_TEXT)},
    "taught by the teacher": Variant("student", (_members("teacher"),), start="teacher"),
    "taught by the teacher and control-text": Variant("student", (_members("teacher", "control-text"),), start="teacher"),
    "taught by all three": Variant("student", (_members("teacher", "control-text", EASE_TEXT),), start="teacher"),
    **{f"taught by control-text and {name}": Variant("student", (_members("control-text", name),)) for name in LINEAR},
    "taught by control-text, ease-text and ease-words": Variant("student", (_members("control-text", EASE_TEXT, EASE_WORDS),)),
    "taught by control-text and ease-text, all items alike": Variant(
        "student", (_members("control-text", EASE_TEXT), "ease.recency=1e9")
    ),
    **{f"dropout {p}": Variant("student", (f"distill.dropout={p}",)) for p in (0.2, 0.4)},
    **{f"control-text, dropout {p}": Variant("control-text", (f"student.dropout={p}",)) for p in (0.2, 0.4)},
    **{
        f"control-text, {name}": Variant("control-text", (f"regularisers={{{name} = {{}}}}",))
        for name in ("history_contrast", "text_alignment")
    },
    "control-text, layers 8 and 15": Variant("control-text", _LAYERS),
    "control-text, whitened": Variant("control-text", ("text.whiten=true", "text.student_dims=400")),
    "control-text, not whitened": Variant("control-text", ("text.whiten=false", "text.student_dims=128")),
    "view of words": Variant("view-words", _WORDS),
    "taught by control-text, view of words and ease-text": Variant(
        "student", (*_WORDS, _members("control-text", "view-words", EASE_TEXT)), start="view of words"
    ),
    "teacher reads texts": Variant("teacher", _READER),
    "taught by a reader of texts": Variant("student", (*_READER, _LLM), start="teacher reads texts"),
    "control-tuned": Variant("control-tuned", _TUNED),
    "tuned vectors, taught": Variant("student", (*_TUNED, _LLM, "teacher.item_init=control-tuned"), start="control-tuned"),
}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"variants: {'; '.join(VARIANTS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="a dataset folder instead of the recipe's source")
    parser.add_argument("--users", type=int, default=10_000, help="drawn of the dataset's")
    parser.add_argument("--jobs", type=int, default=1, help="arms trained side by side, for a GPU")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, for all variants")
    only = parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="variants (below)")
    only.metavar = "NAME"
    parser.add_argument("--out", type=Path, help="default: docs/results/ablation-DATASET.json")
    arguments = parser.parse_args(words)
    try:
        _ablate(arguments)
    except ValueError as error:  # of recipe, data or options
        sys.exit(str(error))


def _ablate(arguments: argparse.Namespace) -> None:
    ledger = Ledger(arguments)
    chain = _pipeline(arguments, ledger.runs, CHAIN, ())
    for task in make_side_by_side(_shared(distill_tasks(chain)), arguments.jobs):
        print(f"{CHAIN}: {task}", file=sys.stderr)
    controls = _of_seeds(chain, "control-text")
    ledger.require_same(controls)
    tasks = dict[str, list[Task]]()  # of each variant, one a seed
    for name in _starts_first(arguments.only):
        variant = VARIANTS[name]
        pipeline = _pipeline(arguments, ledger.runs, _folder(name), variant.keys)
        tasks[name] = [
            Task(pipeline, *_of_arm(variant.arm, seed), after=tuple(tasks.get(variant.start, [])))
            for seed in pipeline.recipe.seeds
        ]
        if not variant.start:
            _link(chain.folder, pipeline.folder)
    everything = {task: name for name, own in tasks.items() for task in own}
    done, judged = set[Task](), []
    with ThreadPoolExecutor(1) as judge:  # while it judges a variant the next is trained
        for task in make_side_by_side(list(everything), arguments.jobs):
            done.add(task)
            name = everything[task]
            if done.issuperset(tasks[name]):
                for other in tasks:
                    if VARIANTS[other].start == name:
                        _link(task.pipeline.folder, tasks[other][0].pipeline.folder)
                judged.append(judge.submit(ledger.judge, name, _of_seeds(task.pipeline, VARIANTS[name].arm), controls))
    for row in judged:
        row.result()
    ledger.compare(chain.recipe.seeds)


def _folder(variant: str) -> str:
    return variant.replace(" ", "-").replace(",", "")


def _of_arm(arm: str, seed: int) -> tuple[str, tuple[str | int, ...]]:
    """Method and arguments of the pipeline that make it."""
    return ("teacher", (seed,)) if arm == "teacher" else ("arm", (arm, seed))


def _shared(tasks: list[Task]) -> list[Task]:
    """Of the recipe's chain what variants share: control-text, what teaches the student, and all that these need."""
    needed = {task for task in tasks if task.method == "targets" or task.arguments[:1] == ("control-text",)}
    for task in reversed(tasks):
        needed.update(task.after if task in needed else ())
    return [task for task in tasks if task in needed]


def _starts_first(names: Iterable[str]) -> list[str]:
    """Those names and those of the variants where they start, which come before them."""
    starts = {VARIANTS[name].start for name in names} - {""}
    return sorted({*names, *starts}, key=lambda name: (name not in starts, list(VARIANTS).index(name)))


def _of_seeds(pipeline: Pipeline, arm: str) -> list[Artifact]:
    return [load(pipeline.folder / f"seed-{seed}" / arm) for seed in pipeline.recipe.seeds]


def _digests(artifacts: list[Artifact]) -> list[str]:
    return [artifact.digest for artifact in artifacts]


def _pipeline(arguments: argparse.Namespace, runs: Path, name: str, keys: tuple[str, ...]) -> Pipeline:
    named = [*of_folder(runs / "sample"), f"name={json.dumps(name)}"]
    recipe = load_recipe(Recipe, arguments.recipe, [*named, *ALONE, *arguments.set, *_weighed(arguments, keys)])
    return Pipeline(recipe, runs, overwrite=name != CHAIN)  # what a variant changes, it makes anew


def _weighed(arguments: argparse.Namespace, keys: Iterable[str]) -> list[str]:
    """What a variant changes, with the weight of linear models as the recipe has it."""
    members = load_recipe(Recipe, arguments.recipe, ["name=any", *ALONE, *arguments.set]).targets.members
    weight = max(members.get(name, 0.0) for name in LINEAR) or 50.0
    return [key.replace(_WEIGHT, str(weight)) for key in keys]


def _link(start: Path, folder: Path) -> None:
    """A folder that starts with the artefacts of another one, as hard links: nothing is ever changed in place."""
    if not folder.exists():
        aside = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(start, aside, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))
        aside.rename(folder)


class Ledger:
    """The file of results, of one sample and one recipe; and the folder of their runs, which is of no other either."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        (dataset, data), users, self.arguments = _dataset(arguments), arguments.users, arguments
        self.out: Path = arguments.out or Path(f"docs/results/ablation-{dataset}.json")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        recipe = load_recipe(Recipe, arguments.recipe, ["name=any", *ALONE, *arguments.set])
        of = [sha256_file(data / f"{table}.parquet") for table in ("interactions", "items")]
        of += [str(users), recipe.of_training]
        self.about = {"of_sha256": hashlib.sha256("\n".join(of).encode()).hexdigest(), "users": users}
        self.runs: Path = arguments.runs / f"{dataset}-{self.about['of_sha256'][:16]}"
        machine = environment(1)
        command = ["python tools/ablation.py", "--recipe", str(arguments.recipe), "--users", str(users)]
        command += ["--data", dataset] if arguments.data else []
        command += [word for entry in arguments.set for word in ("--set", entry)]
        self.run = {"hardware": f"{machine['cpu']}, {machine['gpu'] or 'no GPU'}", "command": " ".join(command)}
        self._read()
        _draw(data, users, self.runs / "sample")

    def require_same(self, controls: list[Artifact]) -> None:
        """Raise unless every row that is there was compared with these control-texts: others do not belong in its table."""
        rows = self._read()["rows"].values()
        if any(row.get("control") != _digests(controls) for row in rows):
            raise ValueError(
                f"{self.out} holds rows that were compared with another control-text than {controls[0].path}; move it away, or "
                "name another --out"
            )

    def judge(self, name: str, made: list[Artifact], controls: list[Artifact]) -> None:
        """Write the row of a variant, in the place of one of its name, unless it is there of these very artefacts."""
        if self._read()["rows"].get(name, {}).get("artifact") == _digests(made):
            return
        variant = VARIANTS[name]
        row: dict[str, Any] = {"arm": variant.arm, "changes": _weighed(self.arguments, variant.keys)}
        row["num_epochs"] = max(len(kept_history(one)) for one in made)
        for part in ("validation", "test"):
            own_SU, control_SU = (np.stack([kept_ranks(one, part) for one in artifacts]) for artifacts in (made, controls))
            row[part] = beside(own_SU, control_SU, "control-text")
        row |= {
            "artifact": _digests(made),
            "control": _digests(controls),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            **self.run,
        }
        with lock(self.out.with_name(f".{self.out.name}.lock")):  # other calls, of other variants, write as well
            found = self._read()
            found["rows"][name] = row
            write_atomically(self.out, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
        print(f"{name}: {row['validation']['ndcg_at_10']:.5f}")

    def compare(self, seeds: list[int]) -> None:
        """Add to every row whose artefacts are still there its paired difference to OBJECTIVE's."""
        with lock(self.out.with_name(f".{self.out.name}.lock")):
            found, ranks = self._read(), dict[str, dict[str, np.ndarray]]()
            for name, row in found["rows"].items():
                paths = [self.runs / _folder(name) / f"seed-{seed}" / row["arm"] for seed in seeds]
                made = [load(path) for path in paths if (path / MANIFEST).exists()]
                if _digests(made) == row["artifact"]:
                    ranks[name] = {part: np.stack([kept_ranks(one, part) for one in made]) for part in ("validation", "test")}
            first = ranks.pop(OBJECTIVE, {})
            for name, own in ranks.items():
                for part, rank_SU in first.items():
                    found["rows"][name][part] |= beside(own[part], rank_SU, OBJECTIVE)
            write_atomically(self.out, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        found = json.loads(self.out.read_text()) if self.out.exists() else self.about | {"rows": {}}
        if found["of_sha256"] != self.about["of_sha256"]:
            raise ValueError(f"{self.out} holds rows of another recipe, sample or dataset; move it away, or name another --out")
        return found


def _dataset(arguments: argparse.Namespace) -> tuple[str, Path]:
    """Name and folder of the whole dataset: the one that was named, or what the recipe's importer makes of its source."""
    if arguments.data:
        return arguments.data.resolve().name, arguments.data.resolve()
    recipe = load_recipe(Recipe, arguments.recipe, arguments.set)
    return recipe.name, Pipeline(recipe, arguments.runs).data.path


def _draw(data: Path, users: int, out: Path) -> None:
    """The dataset folder of a fixed sample of users; all items stay."""
    if out.exists():
        return
    interactions = pl.read_parquet(data / "interactions.parquet")
    everyone = interactions["user_id"].unique().sort()
    if users > len(everyone):
        raise ValueError(f"--users {users}: {data} has {len(everyone)}")
    drawn = everyone.gather(np.sort(np.random.default_rng(0).permutation(len(everyone))[:users]))
    aside = out.with_suffix(".partial")
    aside.mkdir(parents=True, exist_ok=True)
    interactions.join(drawn.to_frame(), on="user_id", how="semi", maintain_order="left").write_parquet(
        aside / "interactions.parquet"
    )
    shutil.copyfile(data / "items.parquet", aside / "items.parquet")
    aside.rename(out)


if __name__ == "__main__":
    main()
