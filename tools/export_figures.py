"""The figures of the exported graph, written to docs/results/export.json.

    speed     our graph and its rivals on random weights, by the benchmark's runner
    parity    every runtime and precision against PyTorch, on trained students
    engines   TensorRT engines of every precision
    append    new items into a graph that is there

    python tools/export_figures.py speed
    python tools/export_figures.py parity engines append --recipe recipes/ml-100k.toml
    python tools/export_figures.py parity --arm control-id --recipe recipes/ml-100k.toml --data FOLDER

All but speed take the artefacts of a finished `make distill` (with the same options), making what is missing.
"""

from __future__ import annotations

import argparse
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
import polars as pl
import torch

from benchmark.baselines.plain_graph import PlainGraph, to_plain_onnx
from benchmark.catalogue import drawn_graph, drawn_student
from benchmark.config import BenchmarkSection
from benchmark.environment import environment
from benchmark.runner import Results, failure, measure, round_ratios
from benchmark.worker import Job
from export.graph import ServingGraph
from export.onnx_graph import build_onnx, serving_model
from export.parity import answers, parity_requests
from export.tensorrt_engine import build_engines
from export.verify import table, verify_graph
from foundation.artifact import Artifact, make
from foundation.recipe import load_recipe, slug
from quantize.config import QuantizeSection
from quantize.graph import build_quantized_graph
from quantize.methods import ENGINE_METHODS, SERVED_METHODS
from recdistill.pipeline import Pipeline
from recdistill.recipe import Recipe, of_folder
from recommender.config import StudentSection
from recommender.runtimes.base import GRAPH
from recommender.student import StudentRecommender, load_student, save_student

LEDGER = Path("docs/results/export.json")
K, LENGTH, HIDDEN = 20, 50, 128
SIZES = (3_700, 100_000)
OURS = {"onnxruntime": "ours, ONNX Runtime", "openvino": "ours, OpenVINO"}
LOOKED_UP = {"onnxruntime": "ours, first layer looked up, ONNX Runtime", "openvino": "ours, first layer looked up, OpenVINO"}
STAGED = {"onnxruntime": "ours, looked up, in two stages, ONNX Runtime", "openvino": "ours, looked up, in two stages, OpenVINO"}
STAGES = (32, 128)  # dimensions and items of the first
PLAIN = {"onnxruntime": "plain, ONNX Runtime", "openvino": "plain, OpenVINO"}
TORCH = {
    "plain-pytorch": "plain, PyTorch eager",
    "parts": "encoder in ONNX Runtime, the rest in numpy",
    "pytorch": "ours, PyTorch eager",
}
COMPILED = {"pytorch-compiled": "ours, torch.compile", "aotinductor": "ours, AOTInductor"}  # of the largest catalogue
NEW_ITEMS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phases", nargs="+", choices=sorted(PHASES))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/ml-100k.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--arm", default="student", choices=("student", "control-id", "control-text"))
    parser.add_argument("--rounds", type=int, default=5, help="of speed")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    for phase in arguments.phases:
        started = time.monotonic()
        ledger = json.loads(LEDGER.read_text()) if LEDGER.exists() else {}
        with tempfile.TemporaryDirectory() as folder:
            found = PHASES[phase](arguments, Path(folder), ledger)
        machine = environment(2)
        run = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": " ".join(["python", "tools/export_figures.py", phase, *_options(arguments)]),
            "hardware": f"{machine['num_cpus']} cores, {machine['cpu']}, {', '.join(machine['cpu_flags'])}",
            "versions": machine["versions"],
            "seconds": round(time.monotonic() - started),
        }
        name = " ".join([phase, *_options(arguments)]) if phase == "parity" else phase
        ledger |= found | {"runs": ledger.get("runs", {}) | {name: run}}
        LEDGER.write_text(json.dumps(ledger, indent=1, sort_keys=True) + "\n")


def _options(arguments: argparse.Namespace) -> list[str]:
    """Those of the command that matter to a reader: no path of this machine."""
    found = [] if arguments.arm == "student" else ["--arm", arguments.arm]
    found += ["--recipe", str(arguments.recipe)] + [word for entry in arguments.set for word in ("--set", entry)]
    return found + (["--data", arguments.data.name] if arguments.data else [])


def _pipeline(arguments: argparse.Namespace) -> Pipeline:
    overrides = of_folder(arguments.data) if arguments.data else []
    return Pipeline(load_recipe(Recipe, arguments.recipe, [*overrides, *arguments.set]), arguments.runs)


def _dataset(arguments: argparse.Namespace) -> str:
    return slug(arguments.data.resolve().name) if arguments.data else arguments.recipe.stem


# --- speed


def speed(arguments: argparse.Namespace, work: Path, ledger: dict[str, Any]) -> dict[str, Any]:
    """Batches of 64 and single requests, histories of 50 items, the top 20 of catalogues of two sizes; weights are drawn."""
    section = BenchmarkSection(rounds=arguments.rounds, single_s=0.7, offline_s=1.2, num_histories=512, timeout_s=600.0)
    sizes = {str(size): _speed_of(size, section, work / str(size)) for size in SIZES}
    large = sizes[str(SIZES[-1])]
    fastest = {
        whose: max(names.values(), key=lambda n: large["variants"][n]["throughput_per_s"])
        for whose, names in (("ours", OURS), ("looked_up", LOOKED_UP), ("two_stages", STAGED))
    }
    headline = {
        f"{whose}_over_{rival}": large["throughput_over"][rival_name][name]
        for whose, name in fastest.items()
        for rival, rival_name in (
            ("openvino_plain", PLAIN["openvino"]),
            ("torch_eager", TORCH["plain-pytorch"]),
            ("parts", TORCH["parts"]),
        )
    }
    return {
        "speed": headline
        | {
            "fastest": fastest,
            "first_stage": STAGES,
            "precision": large["variants"][fastest["ours"]]["precision"],
            "batch_size": section.batch_size,
            "hidden_size": HIDDEN,
            "length": LENGTH,
            "k": K,
            "rounds": section.rounds,
            "sizes": sizes,
        }
    }


def _speed_of(num_items: int, section: BenchmarkSection, work: Path) -> dict[str, Any]:
    work.mkdir()
    drawn = drawn_student(StudentSection(hidden_size=HIDDEN, num_layers=2, max_length=LENGTH), num_items)
    recipe = {"student": drawn.section.model_dump(mode="json")}
    student = make(work / "student", "student", recipe=recipe, inputs={}, build=lambda draft: save_student(drawn, draft))
    plain = drawn_graph(drawn, to_plain_onnx(PlainGraph(drawn, K), drawn, ("item_index", "score")), work / "plain")
    np.save(work / "histories.npy", np.random.default_rng(0).integers(1, num_items + 1, (section.num_histories, LENGTH)))

    def own(name: str, **options: Any) -> Artifact:
        return drawn_graph(drawn, serving_model(ServingGraph(drawn, K, **options), [], 21, ""), work / name)

    ours, looked_up = own("ours"), own("looked-up", first_layer=True)
    staged = own("staged", first_layer=True, first_stage=STAGES)
    compiled = COMPILED if num_items == SIZES[-1] else {}
    base = Job("", "", section.model_dump(), histories=str(work / "histories.npy"))
    jobs = {
        name: replace(base, artifact=str(artifact.path), digest=artifact.digest, runtime=runtime)
        for artifact, names in (
            (plain, PLAIN),
            (ours, OURS),
            (looked_up, LOOKED_UP),
            (staged, STAGED),
            (student, TORCH | compiled),
        )
        for runtime, name in names.items()
        if runtime != "openvino" or find_spec("openvino")
    }
    results = measure(jobs, section, work)
    ran = {name: own for name, own in results.items() if not failure(own)}
    return {
        "variants": {name: _figures(own) for name, own in ran.items()},
        "failed": {name: failure(own) for name, own in results.items() if failure(own)},
        "throughput_over": _ratios(ran, lambda result: result["throughput_per_s"]),
        "single_request_speed_over": _ratios(ran, lambda result: 1 / float(np.median(result["latency_samples_s"]))),
    }


def _figures(own: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "precision": own[0]["precision"],
        "throughput_per_s": float(np.median([result["throughput_per_s"] for result in own])),
        "single_p50_ms": float(1e3 * np.median([np.median(result["latency_samples_s"]) for result in own])),
        "peak_rss_bytes": int(np.median([result["peak_rss_bytes"] for result in own])),
    }


def _ratios(ran: Results, pace: Callable[[dict[str, Any]], float]) -> dict[str, dict[str, Any]]:
    """rival -> ours -> ours over the rival, taken within each round."""
    paces = {name: [{"throughput_per_s": pace(result)} for result in own] for name, own in ran.items()}
    rivals = [name for name in (*PLAIN.values(), *TORCH.values(), *COMPILED.values()) if name in ran]
    ours = [name for name in (*OURS.values(), *LOOKED_UP.values(), *STAGED.values()) if name in ran]
    return {rival: {name: round_ratios(paces[name], paces[rival]) for name in ours} for rival in rivals}


# --- what is exported of trained students


def _graphs(
    pipeline: Pipeline, arm: str, work: Path, precisions: tuple[str, ...], methods: tuple[str, ...]
) -> dict[str, Artifact]:
    """The graphs of an arm by precision or method, made in `work`: other recipes' artefacts stay as they are."""
    student, sequences, section = pipeline.arm(arm, pipeline.recipe.seeds[0]), pipeline.sequences, pipeline.recipe.export
    opened = load_student(student)
    graphs = {}
    for precision in dict.fromkeys(["fp32", *precisions]):
        build = lambda draft, p=precision: build_onnx(opened, sequences, section, student.digest, draft, p)  # noqa: E731
        graphs[precision] = make(work / precision, f"onnx-{precision}", recipe={}, inputs={}, build=build)
    for method in methods:
        build = lambda draft, m=method: build_quantized_graph(m, graphs["fp32"], sequences, QuantizeSection(), draft)  # noqa: E731
        graphs[method] = make(work / method, f"onnx-{method}", recipe={}, inputs={}, build=build)
    return graphs


def parity(arguments: argparse.Namespace, work: Path, ledger: dict[str, Any]) -> dict[str, Any]:
    """Overlap, order, scores and NDCG@10 of every graph in every runtime here, beside PyTorch's."""
    pipeline, dataset = _pipeline(arguments), _dataset(arguments)
    section = pipeline.recipe.export.model_copy(update={"k": K})
    student = load_student(pipeline.arm(arguments.arm, pipeline.recipe.seeds[0]))
    requests = parity_requests(pipeline.sequences, section.parity_histories, K)
    reference = answers(StudentRecommender(student), requests, K)
    graphs = _graphs(pipeline, arguments.arm, work, ("fp32", "fp16"), SERVED_METHODS)
    rows = []
    for name, graph in graphs.items():
        rows += verify_graph(name, graph.file(GRAPH), name.partition("-")[0], reference, requests, section)
    print(table(rows))
    stage = {"first_stage": list(section.first_stage) if section.first_stage_dims else None}
    is_old = lambda entry: entry["dataset"] == dataset and entry["first_stage"] == stage["first_stage"]  # noqa: E731
    kept = [entry for entry in ledger.get("parity", []) if not is_old(entry)]
    for row in rows:
        entry = row.to_dict()
        kept.append({"dataset": dataset, "arm": arguments.arm, **stage, "overlap_at_20": entry.pop("overlap", None), **entry})
    return {"parity": kept}


def engines(arguments: argparse.Namespace, work: Path, ledger: dict[str, Any]) -> dict[str, Any]:
    """An engine of every precision, for all targets that have it."""
    pipeline = _pipeline(arguments)
    wanted = ("fp32", "fp16", "bf16", "int8", "int4", "fp8")
    section = pipeline.recipe.export
    section = section.model_copy(update={"tensorrt": section.tensorrt.model_copy(update={"precisions": list(wanted)})})
    floats = tuple(precision for precision in wanted if precision not in ENGINE_METHODS)
    graphs = _graphs(pipeline, arguments.arm, work, floats, tuple(ENGINE_METHODS.values()))
    by_precision = {precision: graphs[ENGINE_METHODS.get(precision, precision)] for precision in wanted}
    student = load_student(pipeline.arm(arguments.arm, pipeline.recipe.seeds[0]))
    reference, parameters = StudentRecommender(student), student.num_parameters
    build = lambda draft: build_engines(by_precision, reference, parameters, pipeline.sequences, section, draft)  # noqa: E731
    made = make(work / "engines", "tensorrt", recipe={}, inputs={}, build=build)
    kept = ("flavour", "precision", "targets", "bytes", "build_s")
    return {
        "engines": [{name: engine[name] for name in kept} for engine in made.metrics["engines"]],
        "engines_left_out": made.metrics["left_out"],
        "engines_status": made.metrics["status"],
    }


def append(arguments: argparse.Namespace, work: Path, ledger: dict[str, Any]) -> dict[str, Any]:
    """A thousand items with the titles of the catalogue, in another order, under new ids."""
    pipeline = _pipeline(arguments)
    from recommender.data import load_dataset

    known = load_dataset(pipeline.data).items
    titles = [f"{known['title'][number % known.height]} {number}" for number in range(NEW_ITEMS)]
    pl.DataFrame({"item_id": [f"new-{number}" for number in range(NEW_ITEMS)], "title": titles}).write_parquet(
        work / "new.parquet"
    )
    made = pipeline.appended(work / "new.parquet", work / "appended", None, pipeline.recipe.seeds[0])
    found = made.metrics["appended"]
    return {"append": {"items": found["items"], "seconds": found["append_s"], **found}}


PHASES: dict[str, Callable[[argparse.Namespace, Path, dict[str, Any]], dict[str, Any]]] = {
    "speed": speed,
    "parity": parity,
    "engines": engines,
    "append": append,
}

if __name__ == "__main__":
    main()
