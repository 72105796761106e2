"""What distillation brings on a dataset, written to docs/results/distill-DATASET.json.

    accuracy   the arms of a finished `make distill`, from the ranks they kept, on test; alignment and uniformity of items
    curves     validation epoch by epoch; by slice, on test, where teacher and student differ from control-text
    audit      what every seed's audit found before anything was distilled
    members    those who teach the student, all together, beside control-text and the student, on validation and test
    ablation   arms of other runs (NAME=FOLDER, a folder of seed-S folders) beside one of this run's, on validation and test
    sample     what tools/ablation.py found, on a sample of users, in short (docs/results/ablation-DATASET.json is the whole)
    speed      throughput of the student and its controls, the teacher and the full-depth teacher, by the benchmark's runner

    python tools/distill_figures.py accuracy speed --recipe recipes/amazon18-games.toml
    python tools/distill_figures.py ablation --recipe … --arm student label-0.5=runs/half/amazon18-games

speed takes the artefacts of the first seed (of the controls those that are there), and teachers that are not trained: their
pace does not depend on it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from benchmark.accuracy import accuracy_figures, beside, comparisons
from benchmark.environment import environment
from benchmark.report import speed_histories
from benchmark.runner import failure, measure, round_ratios, typical
from benchmark.table import GEOMETRY
from benchmark.worker import Job
from distill.audit import AUDIT
from distill.device import rows_at_once
from distill.evaluation import kept_history, kept_ranks
from distill.llm import llm_folder, read_config
from distill.members import Ensemble, MemberRecommender, open_member
from distill.teacher import new_teacher, save_teacher
from export.onnx_graph import build_onnx
from foundation.artifact import Artifact, load, make, write_atomically
from foundation.content import read_json
from foundation.recipe import load_recipe
from recdistill.pipeline import ENSEMBLE, Pipeline
from recdistill.recipe import Recipe, of_folder
from recommender.evaluate import evaluate
from recommender.metrics import ndcg, paired_relative_difference
from recommender.slices import slices
from recommender.student import WEIGHTS, load_student

HEADLINES = {"student_vs_control_text": "control-text", "student_vs_ensemble_kd": ENSEMBLE}
RUNTIMES, FULL_DEPTH = ("onnxruntime", "openvino"), "full-depth teacher"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phases", nargs="+", metavar="PHASE", help=f"{', '.join(PHASES)}; after ablation also NAME=FOLDER")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, help="a dataset folder instead of the recipe's source")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--arm", default="student", help="of ablation")
    parser.add_argument("--over", default="control-text", help="the arm that ablation compares with")
    parser.add_argument("--trained-on", default="", metavar="HARDWARE", help="where the runs were made, if not here")
    arguments = parser.parse_args(words)
    arguments.variants = dict(word.split("=", 1) for word in arguments.phases if "=" in word)
    phases = [word for word in arguments.phases if "=" not in word]
    if unknown := [phase for phase in phases if phase not in PHASES]:
        parser.error(f"no phase is named {unknown[0]!r}; known: {', '.join(PHASES)}")
    pipeline = _pipeline(arguments)
    ledger_file = Path(f"docs/results/distill-{pipeline.recipe.name}.json")
    trained = load_recipe(Recipe, arguments.recipe, ["name=any", *arguments.set]).of_training  # wherever the data lie here
    of: dict[str, Any] = {"recipe_sha256": hashlib.sha256(trained.encode()).hexdigest()}
    for phase in phases:
        started = time.monotonic()
        ledger = json.loads(ledger_file.read_text()) if ledger_file.exists() else of
        if ledger.get("recipe_sha256") != of["recipe_sha256"]:
            raise SystemExit(f"{ledger_file} holds figures of another recipe; move it away")
        found = PHASES[phase](arguments, pipeline)
        machine = environment(2)
        here = f"{machine['num_cpus']} cores, {machine['cpu']}, {', '.join(machine['cpu_flags'])}, {machine['gpu'] or 'no GPU'}"
        run = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": " ".join(["python tools/distill_figures.py", phase, *_options(arguments, phase)]),
            "hardware": here,
            **({"trained_on": arguments.trained_on} if arguments.trained_on and phase != "speed" else {}),
            "seconds": round(time.monotonic() - started),
        }
        name = f"ablation {arguments.arm}" if phase == "ablation" else phase
        for part in ("ablation", "arms"):  # other calls' rows stay; of a row what this call has not found
            if part in found:
                old = ledger.get(part, {})
                found[part] = old | {
                    row: (old.get(row, {}) if part == "arms" else {}) | own for row, own in found[part].items()
                }
        ledger |= found | {"runs": ledger.get("runs", {}) | {name: run}}
        write_atomically(ledger_file, (json.dumps(ledger, indent=1, sort_keys=True) + "\n").encode())


def _options(arguments: argparse.Namespace, phase: str) -> list[str]:
    """Those of the command that matter to a reader: no path of this machine."""
    found = ["--recipe", str(arguments.recipe), *(["--data", arguments.data.name] if arguments.data else [])]
    found += [word for entry in arguments.set for word in ("--set", entry)]
    return (
        [*(f"{name}=…" for name in arguments.variants), "--arm", arguments.arm, "--over", arguments.over, *found]
        if phase == "ablation"
        else found
    )


def _pipeline(arguments: argparse.Namespace) -> Pipeline:
    folder = of_folder(arguments.data) if arguments.data else []
    return Pipeline(load_recipe(Recipe, arguments.recipe, [*folder, *arguments.set]), arguments.runs)


# --- accuracy


def accuracy(arguments: argparse.Namespace, pipeline: Pipeline) -> dict[str, Any]:
    """NDCG@10 and HR@10 of every arm on test, and the paired differences, on test and validation; users' means over seeds."""
    seeds = pipeline.recipe.seeds
    kept = _kept(pipeline) | {name: [load(pipeline.folder / name, name)] * len(seeds) for name in pipeline.linear}
    ranks, on_validation = (
        {arm: np.stack([kept_ranks(artifact, part) for artifact in own]) for arm, own in kept.items()}
        for part in ("test", "validation")
    )
    found = comparisons(ranks)
    for name, own in found.items():
        print(f"{name}: {own['relative']:+.1%} [{own['ci95'][0]:+.1%}, {own['ci95'][1]:+.1%}]")
    arms = {
        arm: accuracy_figures(ranks[arm])
        | {
            "num_parameters": kept[arm][0].metrics["num_parameters"],
            "validation_ndcg_at_10": [artifact.metrics["validation"]["ndcg_at_10"] for artifact in kept[arm]],
        }
        | {key: [own.metrics[key] for own in kept[arm]] for key in GEOMETRY if key in kept[arm][0].metrics}
        for arm in kept
    }
    return {
        "seeds": seeds,
        "users": ranks["student"].shape[1],
        "targets_sha256": _same([artifact.metrics["targets_sha256"] for own in kept.values() for artifact in own]),
        "arms": arms,
        "comparisons": found,
        "comparisons_on_validation": comparisons(on_validation),
        **{headline: found[f"student over {arm}"] for headline, arm in HEADLINES.items() if arm in arms},
    }


def _kept(pipeline: Pipeline) -> dict[str, list[Artifact]]:
    """Every arm's artefacts, one a seed, seen to be of this recipe."""
    kept = {
        arm: [load(pipeline.folder / f"seed-{seed}" / arm, arm) for seed in pipeline.recipe.seeds] for arm in _arms(pipeline)
    }
    recipe = pipeline.recipe.model_dump(mode="json")
    for artifact in (artifact for own in kept.values() for artifact in own):
        for section in artifact.recipe.keys() & recipe.keys():
            made_by, now = artifact.recipe[section], recipe[section]
            if made_by != ({key: now.get(key) for key in made_by} if isinstance(made_by, dict) else now):
                raise SystemExit(f"{artifact.path} was made by another recipe: its section {section} differs; make it again")
    return kept


def _arms(pipeline: Pipeline) -> list[str]:
    return [*pipeline.controls, "teacher", "student"]


def _same(values: list[str]) -> str:
    if len(set(values)) > 1:
        raise SystemExit(f"the runs were judged on different targets: {', '.join(sorted(set(values)))}")
    return values[0]


# --- curves


def curves(arguments: argparse.Namespace, pipeline: Pipeline) -> dict[str, Any]:
    """NDCG@10 on validation after every epoch of every arm and seed; and paired differences in each slice of test's users."""
    in_slice, kept = slices(pipeline.sequences), _kept(pipeline)
    value = {arm: np.mean([ndcg(kept_ranks(one, "test"), 10) for one in own], axis=0) for arm, own in kept.items()}
    pairs = [("teacher", "control-text"), ("student", "control-text"), (ENSEMBLE, "control-text"), ("student", ENSEMBLE)]
    pairs = [(new, old) for new, old in pairs if new in value and old in value]
    return {
        "learning_curves": {
            arm: [[epoch["validation_ndcg_at_10"] for epoch in kept_history(one)] for one in own] for arm, own in kept.items()
        },
        "slices": {name: int(mask_U.sum()) for name, mask_U in in_slice.items()},
        "comparisons_by_slice": {
            f"{new} over {old}": {
                name: paired_relative_difference(value[new][mask_U], value[old][mask_U], family=len(in_slice))
                for name, mask_U in in_slice.items()
            }
            for new, old in pairs
        },
    }


# --- audit


def audit(arguments: argparse.Namespace, pipeline: Pipeline) -> dict[str, Any]:
    """Of every seed: who teaches against baselines and controls, overall and by slice, calibration, shared lists."""
    folders = {seed: pipeline.folder / f"seed-{seed}" / "audit" for seed in pipeline.recipe.seeds}
    return {"audit": {f"seed-{seed}": read_json(load(folder, "audit").file(AUDIT)) for seed, folder in folders.items()}}


# --- members


def members(arguments: argparse.Namespace, pipeline: Pipeline) -> dict[str, Any]:
    """NDCG@10 of those who teach as one, over control-text, and the student's over theirs, on validation and test."""
    sequences, section = pipeline.sequences, pipeline.recipe.targets
    seeds, kept, found = pipeline.recipe.seeds, _kept(pipeline), dict[str, Any]()
    torch.set_num_threads(pipeline.recipe.num_threads or torch.get_num_threads())
    rows, ranks = rows_at_once(sequences.num_items, cpu=64, gpu=512), dict[str, list[np.ndarray]](validation=[], test=[])
    for seed in seeds[:1] if section.seeds == "all" else seeds:
        teaching = Ensemble([(weight, open_member(artifact)) for weight, artifact in pipeline.members(section, seed).values()])
        for part, own in ranks.items():
            own.append(evaluate(MemberRecommender(teaching), sequences, part, batch_size=rows))
    for part, own in ranks.items():
        text_SU, student_SU = (np.stack([kept_ranks(one, part) for one in kept[arm]]) for arm in ("control-text", "student"))
        own_SU = np.stack(own)  # of one seed where all share their teachers: a mean over seeds all the same
        student = beside(student_SU, own_SU, "members")
        found[part] = beside(own_SU, text_SU, "control-text") | {"student_over_members": student["over_members"]}
        print(f"members, {part}: {found[part]['ndcg_at_10']:.5f}")
    return {"members": found}


# --- ablation


def ablation(arguments: argparse.Namespace, pipeline: Pipeline) -> dict[str, Any]:
    """Each variant's arm, over the seeds it has, against this run's `--over` of the same seeds; all users."""
    name, rows = arguments.arm, {}
    for variant, folder in {"recipe": str(pipeline.folder), **arguments.variants}.items():
        made = sorted(Path(folder).glob(f"seed-*/{name}"))
        if not made:
            raise SystemExit(f"{folder} has no seed-S/{name}")
        own, base = [load(path, name) for path in made], [load(pipeline.folder / p.parent.name / arguments.over) for p in made]
        _same([artifact.metrics["targets_sha256"] for artifact in (*own, *base)])
        row: dict[str, Any] = {"seeds": [int(path.parent.name.removeprefix("seed-")) for path in made]}
        for part in ("validation", "test"):
            new_SU, old_SU = (np.stack([kept_ranks(artifact, part) for artifact in arms]) for arms in (own, base))
            row[part] = beside(new_SU, old_SU, arguments.over)
        rows[f"{name}: {variant}"] = row
        print(f"{name}, {variant}: {row['validation']['ndcg_at_10']:.5f}")
    return {"ablation": rows}


def sample(arguments: argparse.Namespace, pipeline: Pipeline) -> dict[str, Any]:
    """Of every variant NDCG@10 and its paired difference to the sample's control-text."""
    source = Path(f"docs/results/ablation-{pipeline.recipe.name}.json")
    if not source.exists():
        raise SystemExit(f"there is no {source}: tools/ablation.py writes it")
    found = json.loads(source.read_text())
    parts = ("validation", "test")
    rows = {f"{name}, {found['users']:,} users": {part: row[part] for part in parts} for name, row in found["rows"].items()}
    return {"ablation": rows}


# --- speed


def speed(arguments: argparse.Namespace, pipeline: Pipeline) -> dict[str, Any]:
    """Completed histories per second, threads and batches as the recipe has them, each in its fastest precision and runtime."""
    recipe, seed = pipeline.recipe, pipeline.recipe.seeds[0]
    if recipe.teacher.items == "text":
        raise SystemExit("speed draws a teacher of soft tokens; of one that reads texts `make bench` measures the trained one")
    section = recipe.benchmark.model_copy(update={"timeout_s": 1800.0})
    torch.set_num_threads(section.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        graphs, teacher = _graphs(pipeline, seed, work), _untrained(pipeline, work / "teacher")
        np.save(work / "histories.npy", speed_histories(pipeline.sequences, recipe.student.max_length, section))
        base = Job("", "", section.model_dump(), histories=str(work / "histories.npy"))
        jobs = {
            f"{arm}, {name}": replace(base, artifact=str(graph.path), digest=graph.digest, runtime=name)
            for arm, graph in graphs.items()
            for name in RUNTIMES
            if find_spec(name)
        }
        jobs["teacher"] = replace(base, artifact=str(teacher.path), digest=teacher.digest)
        jobs[FULL_DEPTH] = replace(jobs["teacher"], full_depth_llm=str(pipeline.llm.path))
        results = measure(jobs, section, work)
    if failed := [f"{name}: {failure(own)}" for name, own in results.items() if failure(own)]:
        raise SystemExit("; ".join(failed))
    rows = {
        name: {
            "throughput_per_s": typical(own, "throughput_per_s"),
            "p50_ms": 1e3 * float(np.median(np.concatenate([result["latency_samples_s"] for result in own]))),
            **{key: own[0][key] for key in ("runtime", "precision", "num_parameters")},
        }
        for name, own in results.items()
    }
    pace = {name: row["throughput_per_s"] for name, row in rows.items()}
    fastest = max((name for name in rows if name.startswith("student")), key=pace.__getitem__)
    over = {name: round_ratios(results[fastest], results[name]) for name in ("teacher", FULL_DEPTH)}
    for name, own in over.items():
        print(f"{fastest} over {name}: {own['median']:.0f}x [{own['ci95'][0]:.0f}, {own['ci95'][1]:.0f}]")
    full = rows[FULL_DEPTH]
    share = full["num_parameters"] / rows[fastest]["num_parameters"]
    return {
        "speed": {
            "rows": rows,
            "fastest_student": fastest,
            "student_over": over,
            "batch_size": section.batch_size,
            "num_threads": section.num_threads,
        },
        "full_depth_teacher": {**full, "untrained": True, "parameters_over_student": share},
        "arms": {"teacher": {"throughput_per_s": pace["teacher"]}}
        | {arm: {"throughput_per_s": max(pace[name] for name in pace if name.startswith(f"{arm}, "))} for arm in graphs},
    }


def _graphs(pipeline: Pipeline, seed: int, work: Path) -> dict[str, Artifact]:
    """Of the student and of those of its controls whose weights are here."""
    section, folder = pipeline.recipe.export, pipeline.folder / f"seed-{seed}"

    def graph(arm: str) -> Artifact:
        trained = load(folder / arm, arm)

        def build(draft: Any) -> None:
            build_onnx(load_student(trained), pipeline.sequences, section, trained.digest, draft, section.dtype)

        return make(work / arm, "onnx", recipe={"export": section.of_graph()}, inputs={}, build=build)

    served = [arm for arm in _arms(pipeline) if arm != "teacher"]
    there = [arm for arm in served if arm == "student" or (folder / arm / WEIGHTS).exists()]
    for arm in served:
        if arm not in there:
            print(f"{arm} is not timed: {folder / arm} has no weights", file=sys.stderr)
    return {arm: graph(arm) for arm in there}


def _untrained(pipeline: Pipeline, out: Path) -> Artifact:
    """A teacher of the recipe's shape: the LLM's own first layers, item vectors and texts at random."""
    section = pipeline.recipe.teacher

    def build(draft: Any) -> None:
        width = read_config(llm_folder(pipeline.llm)).hidden_size
        text_IZ = np.random.default_rng(0).standard_normal((pipeline.sequences.num_items + 1, width), np.float32)
        teacher = new_teacher(pipeline.llm, text_IZ, section)
        save_teacher(teacher, pipeline.llm, draft)
        draft.metrics["num_parameters"] = teacher.num_parameters

    return make(out, "teacher", recipe={"teacher": section.model_dump(mode="json")}, inputs={}, build=build)


PHASES: dict[str, Callable[[argparse.Namespace, Pipeline], dict[str, Any]]] = {
    "accuracy": accuracy,
    "curves": curves,
    "audit": audit,
    "members": members,
    "ablation": ablation,
    "sample": sample,
    "speed": speed,
}

if __name__ == "__main__":
    main()
