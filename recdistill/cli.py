"""The command line: `recdistill STAGE …`. Light: a stage's code is imported when the stage runs.

Exit codes: 0 done, 1 a stage failed, 2 the command, recipe or data is at fault, 130 interrupted, 143 terminated, 134 and other
128 + N: ended by signal N.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation import console
from foundation.failure import explain, is_library_error, require_address_space
from foundation.recipe import load_recipe
from recdistill.supervisor import supervised

if TYPE_CHECKING:
    from foundation.artifact import Artifact
    from recdistill.pipeline import Pipeline

DEFAULT_RECIPE = "recipes/ml-100k.toml"
USAGE_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143
_QUICK = [
    f"benchmark.{name}"
    for name in ("rounds=1", "max_users=128", "single_s=0.3", "offline_s=0.3", "warmup_s=0.1", "timeout_s=60.0")
]
_TORCH_BYTES = 2 << 30  # of address space: what importing PyTorch, transformers and peft takes twice over
_GO_ON = "the same command goes on from the last checkpoint"


class Terminated(BaseException):
    """SIGTERM: unwinds the stack as Ctrl-C does."""


def build_parser() -> argparse.ArgumentParser:
    """Every command and option; tests/test_cli.py freezes the list."""
    parser = argparse.ArgumentParser(prog="recdistill", description="Distil, quantize, export and measure an LLM recommender.")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def stage(
        name: str, run: Callable[[argparse.Namespace], dict[str, Any]], about: str, group: Any = stages
    ) -> argparse.ArgumentParser:
        sub = group.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        if run not in (_inspect, _compare, _export_describe):
            _add_common(sub, again=group is not stages and group is not targets)
        return sub

    stage("data", _data, "import and validate the data")
    trained = [
        stage("teacher", _teacher, "fine-tune the LLM, train the controls, audit the teacher"),
        stage("distill", _distill, "everything up to the distilled student, and the result table"),
    ]
    for sub in trained:
        sub.add_argument("--tensorboard", type=Path, metavar="DIR", help="losses, learning rates and scores as they come")
    trained[1].add_argument("--jobs", type=_positive, default=1, metavar="N", help="arms trained side by side, for a GPU")
    stage("quantize", _quantize, "int8 and 4-bit variants of student and teacher, each judged on ranking")
    export = stages.add_parser("export", help="the serving graph", description="The serving graph.")
    targets = export.add_subparsers(dest="target", required=True, metavar="TARGET")
    stage("onnx", _export_onnx, "one ONNX graph: history in, top-K out", targets)
    stage("tensorrt", _export_tensorrt, "TensorRT engines from the ONNX graph", targets)
    stage("triton", _export_triton, "a model repository for Triton Inference Server", targets)
    stage("openvino", _export_openvino, "the ONNX graph as OpenVINO's own files", targets)
    compiled = stage("aotinductor", _export_aotinductor, "the student compiled for this processor, for libtorch", targets)
    compiled.add_argument("out", type=Path, help="the folder of the package, a new one")
    stage(
        "text-encoder", _export_text_encoder, "texts to vectors as an ONNX graph of its own, for new items and queries", targets
    )
    append = stage("append", _export_append, "new items into a graph that is there already, without training", targets)
    append.add_argument("items", type=Path, help="a Parquet table of items: item_id, title, …")
    append.add_argument("out", type=Path, help="where the graph with them goes")
    append.add_argument("--engines", action="store_true", help="and TensorRT engines from it, beside it")
    append.add_argument("--graph", type=Path, metavar="DIR", help="the graph to start from (default: the student's)")
    stage("verify", _export_verify, "do all runtimes here rank as PyTorch does?", targets)
    described = stage(
        "describe", _export_describe, "inputs, outputs, precision, bytes, digests of an exported artefact", targets
    )
    described.add_argument("artifact", type=Path)
    checkpoint = stage("checkpoint", _export_checkpoint, "any trained student as an ONNX graph", targets)
    checkpoint.add_argument("student", type=Path, help="the artefact of a student or control")
    checkpoint.add_argument("out", type=Path, help="where the graph goes")
    checkpoint.add_argument("--dataset", type=Path, required=True, help="the dataset artefact whose items it ranks")
    bench = stage("bench", _bench, "accuracy, latency, throughput and memory of every variant")
    bench.add_argument(
        "--quick", action="store_true", help="one short round over 128 users, for a first look: no figure to quote"
    )
    more = bench.add_subparsers(dest="target", metavar="TARGET", title="instead of measuring every variant")
    gate = stage("check-latency", _check_latency, "the gate: is this checkout slower than a base?", more)
    gate.epilog = "exit code 0: pass (or a warning), 1: fail, 2: wrong usage, 3: this machine cannot judge now"
    gate.add_argument("base", help="a git revision, or an artefact with a graph (then with --head)")
    gate.add_argument("--head", default="", metavar="DIR", help="the artefact to compare with an artefact")
    gate.add_argument("--student", type=Path, metavar="DIR", help="a trained checkpoint to export instead of a drawn one")
    gate.add_argument("--dataset", type=Path, metavar="DIR", help="the dataset artefact of --student")
    gate.add_argument("--junit", type=Path, metavar="FILE", help="write the result as JUnit XML")
    gate.add_argument("--history", type=Path, metavar="FILE", help="append the result to a file of JSON lines")
    pair = stage("compare", _compare, "two reports side by side", more)
    pair.add_argument("first", type=Path, metavar="A.json")
    pair.add_argument("second", type=Path, metavar="B.json")
    prove = stage("prove-gate", _prove_gate, "how often the gate is right: identical and slowed-down sides, for hours", more)
    prove.add_argument("--ledger", type=Path, default=Path("docs/results/gate.json"), metavar="FILE")
    prove.add_argument("--max-minutes", type=float, default=0, help="stop after this long, to go on another time; 0 = finish")
    stage("inspect", _inspect, "what an artefact is, what made it, and whether it is whole").add_argument("artifact", type=Path)
    return parser


def _positive(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} is no number from 1 on")
    return int(word)


def _add_common(parser: argparse.ArgumentParser, again: bool) -> None:
    """The options of every stage; `again`: below a command that has them too, whose values stand."""

    def add(name: str, default: Any, **settings: Any) -> None:
        parser.add_argument(name, default=argparse.SUPPRESS if again else default, **settings)

    add("--recipe", Path(DEFAULT_RECIPE), type=Path, help=f"TOML file (default: {DEFAULT_RECIPE})")
    add("--set", [], action="append", metavar="KEY=VALUE", help="override a recipe key, e.g. teacher.num_layers=6")
    add("--data", None, type=Path, metavar="FOLDER", help="a dataset folder of your own instead of the recipe's source")
    add("--teacher", None, metavar="NAME", help="an asset, local folder or hub name instead of the recipe's LLM")
    add("--runs", Path("runs"), type=Path, help="where artefacts are kept (default: runs)")
    add("--overwrite", False, action="store_true", help="replace artefacts that were made differently")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the last line of standard output is its result as JSON."""
    arguments = build_parser().parse_args(argv)
    previous = signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as the driver counts, whose memory and energy are read
    try:
        if arguments.run not in (_data, _inspect, _compare):
            require_address_space(_TORCH_BYTES, "PyTorch with its models")
        result = arguments.run(arguments)
        console.result(result)
        return result.get("exit_code", 0)
    except KeyboardInterrupt:
        console.say(f"interrupted; {_GO_ON}")
        return INTERRUPTED
    except Terminated:
        console.say(f"terminated; {_GO_ON}")
        return TERMINATED
    except ValueError as error:  # recipe, data, artefact: the user's to mend
        console.say(f"error: {error}")
        return USAGE_ERROR
    except BaseException as error:  # a panic of a Rust library is no Exception
        if not is_library_error(error) or (reason := explain(error, _GO_ON)) is None:
            raise
        console.say(f"failed: {reason}")
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def run() -> int:
    """The command itself: `main` in a process that is watched over."""
    return supervised(main, _GO_ON)


def _terminate(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: a second one must not disturb the unwinding
    raise Terminated


def _pipeline(arguments: argparse.Namespace) -> Pipeline:
    """The pipeline of the recipe with the command's overrides."""
    from recdistill.recipe import Recipe, of_folder

    overrides = of_folder(arguments.data) if arguments.data else []
    overrides += [f"teacher.llm={json.dumps(arguments.teacher)}"] if arguments.teacher else []
    overrides += _QUICK if getattr(arguments, "quick", False) else []
    recipe = load_recipe(Recipe, arguments.recipe, [*overrides, *arguments.set])  # what --set says comes last and wins
    from recdistill.pipeline import Pipeline

    if recipe.about and not (arguments.data or arguments.teacher):  # it says how long the recipe's own data and LLM take
        console.say(f"{arguments.recipe}: {recipe.about}")
    for view in recipe.idle_views:
        console.say(f"warning: the view {view} teaches nobody: targets.members does not name view-{view}")
    return Pipeline(recipe, arguments.runs, arguments.overwrite, getattr(arguments, "tensorboard", None))


def _torch_pipeline(arguments: argparse.Namespace) -> Pipeline:
    """The pipeline, with torch set up for reproducible training."""
    from recdistill.pipeline import prepare_torch

    pipeline = _pipeline(arguments)
    prepare_torch(pipeline.recipe)
    return pipeline


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    data = _pipeline(arguments).data
    return {"stage": "data", "path": str(data.path), **data.metrics}


def _teacher(arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline = _torch_pipeline(arguments)
    made = [(pipeline.teacher(seed), pipeline.audit(seed)) for seed in pipeline.recipe.seeds]
    for seed in pipeline.recipe.seeds:
        pipeline.tell_audit(seed)
    return {
        "stage": "teacher",
        "teachers": [{"path": str(teacher.path), **teacher.metrics, "audit": audit.metrics} for teacher, audit in made],
    }


def _distill(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmark.table import accuracy_table
    from recdistill.pipeline import ENSEMBLE, ITEM_ENCODER

    pipeline = _torch_pipeline(arguments)
    seeds, audits = pipeline.recipe.seeds, {}
    console.say(f"the student is {pipeline.recipe.lesson}")
    _ = pipeline.data, pipeline.llm  # first, for it is they who may not suit the recipe
    if arguments.jobs > 1:
        from recdistill.parallel import distill_tasks, make_side_by_side

        for task in make_side_by_side(distill_tasks(pipeline), arguments.jobs):
            if task.method == "audit":  # before anybody learns from whom it judged
                pipeline.tell_audit(int(task.arguments[0]))
    for name in pipeline.linear:  # soon, for it may have too many items
        pipeline.ease(name)
    for seed in seeds:
        for name in pipeline.controls:
            if name != ENSEMBLE:  # which needs every seed's control-text
                pipeline.arm(name, seed)
        pipeline.teacher(seed)
        audits[seed] = pipeline.audit(seed)
        pipeline.tell_audit(seed)
    for seed in seeds:
        pipeline.arm("student", seed)
    rows = {name: [pipeline.baseline(name)] for name in ("popularity", "item-knn")}
    rows |= {name: [pipeline.ease(name)] * len(seeds) for name in pipeline.linear}  # one for all seeds
    rows |= {name: [pipeline.arm(name, seed) for seed in seeds] for name in pipeline.controls}
    if pipeline.recipe.item_encoder:
        rows[ITEM_ENCODER] = [pipeline.item_encoder(seed) for seed in seeds]
    rows["teacher"] = [pipeline.teacher(seed) for seed in seeds]
    rows["student"] = [pipeline.arm("student", seed) for seed in seeds]
    text, figures = accuracy_table(rows, pipeline.sequences)
    print(text)
    return {
        "stage": "distill",
        "runs": str(pipeline.folder),
        "audits": {seed: audit.metrics for seed, audit in audits.items()},
        **figures,
    }


def _quantize(arguments: argparse.Namespace) -> dict[str, Any]:
    from foundation.artifact import Unavailable
    from quantize.methods import LLM_METHODS, SERVED_METHODS

    pipeline = _torch_pipeline(arguments)
    found = {}
    for seed in pipeline.recipe.seeds:
        wanted = [(f"student-{method}", pipeline.quantized_student, method) for method in SERVED_METHODS]
        wanted += [(f"teacher-{method}", pipeline.quantized_teacher, method) for method in LLM_METHODS]
        for name, make, method in wanted:
            try:
                artifact = make(method, seed)
                made = {"path": str(artifact.path), "artifact_bytes": artifact.num_bytes, **artifact.metrics}
            except Unavailable as error:
                console.say(f"without {name}: {error}")
                made = {"missing": str(error)}
            found.setdefault(name, []).append({"seed": seed, **made})
    return {"stage": "quantize", "variants": found}


def _export_onnx(arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline = _torch_pipeline(arguments)
    made = [pipeline.onnx("student", seed) for seed in pipeline.recipe.seeds]
    return {"stage": "export onnx", "graphs": [{"path": str(a.path), "artifact_bytes": a.num_bytes, **a.metrics} for a in made]}


def _export_tensorrt(arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline = _torch_pipeline(arguments)
    artifact = pipeline.tensorrt(pipeline.recipe.seeds[0])
    return {"stage": "export tensorrt", **_say_engines(artifact)}


def _say_engines(artifact: Artifact) -> dict[str, Any]:
    print(f"{artifact.metrics['flavour']} {artifact.metrics['tensorrt']}: {artifact.metrics['status']}")
    for engine in artifact.metrics["engines"]:
        size = f"{engine['bytes'] / 2**20:.2f} MiB, built in {engine['build_s']:.1f} s"
        print(f"  {artifact.path / engine['file']}: for {', '.join(engine['targets'])}, {size}")
    for left in artifact.metrics["left_out"]:
        print(f"  no {left['precision']} for {left['target']}: {left['why']}")
    return {"path": str(artifact.path), **artifact.metrics}


def _export_triton(arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline = _torch_pipeline(arguments)
    made = pipeline.triton(pipeline.recipe.seeds[0])
    print(f"{made.path}: {', '.join(made.metrics['models'])}; tools/triton.sh {made.path} serves it where docker is")
    return {"stage": "export triton", "path": str(made.path), **made.metrics}


def _export_openvino(arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline = _torch_pipeline(arguments)
    made = pipeline.openvino(pipeline.recipe.seeds[0])
    print(
        f"{made.path}: OpenVINO {made.metrics['openvino']}, overlap with the ONNX graph {made.metrics['parity']['overlap']:.4f}"
    )
    return {"stage": "export openvino", "path": str(made.path), "artifact_bytes": made.num_bytes, **made.metrics}


def _export_aotinductor(arguments: argparse.Namespace) -> dict[str, Any]:
    from export.aotinductor import write_package

    pipeline = _torch_pipeline(arguments)
    student = pipeline.arm("student", pipeline.recipe.seeds[0])
    found = write_package(student, pipeline.sequences, pipeline.recipe.export, arguments.out)
    print(f"{arguments.out}: machine code, to be opened by its sha256 {found['sha256']} only")
    return {"stage": "export aotinductor", "path": str(arguments.out), **found}


def _export_text_encoder(arguments: argparse.Namespace) -> dict[str, Any]:
    made = _torch_pipeline(arguments).text_encoder()
    found = made.metrics
    print(
        f"{made.path}: {found['precision']}, {made.num_bytes / 2**20:.0f} MiB; cosine with PyTorch's vectors of "
        f"{found['compared_items']} items {found['cosine_mean']:.4f}, {found['cosine_min']:.4f} at least"
    )
    return {"stage": "export text-encoder", "path": str(made.path), "artifact_bytes": made.num_bytes, **found}


def _export_append(arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline = _torch_pipeline(arguments)
    made = pipeline.appended(arguments.items, arguments.out, arguments.graph, pipeline.recipe.seeds[0])
    found = made.metrics["appended"]
    print(
        f"{found['items']:,} items appended, {found['of']:,} in all: texts {found['encode_s']:.1f} s, the rest "
        f"{found['append_s']:.1f} s; old lists unchanged over {found['requests']} histories, "
        f"{found['in_some_top_k']} of the new items in a top K among them"
    )
    result = {"stage": "export append", "path": str(made.path), **made.metrics}
    if arguments.engines:
        result["engines"] = _say_engines(pipeline.appended_engines(made, pipeline.recipe.seeds[0]))
    return result


def _export_verify(arguments: argparse.Namespace) -> dict[str, Any]:
    from export.verify import require, table

    pipeline = _torch_pipeline(arguments)
    rows = [row for seed in pipeline.recipe.seeds for row in pipeline.verified(seed)]
    print(table(rows))
    return {"stage": "export verify", "rows": [row.to_dict() for row in require(rows)]}


def _export_describe(arguments: argparse.Namespace) -> dict[str, Any]:
    from export.describe import describe, to_text
    from foundation.artifact import load

    artifact = load(arguments.artifact)
    found = describe(artifact)
    print(to_text(found))
    for line in _provenance(artifact.manifest["inputs"], artifact.ancestors, set()):
        print(line)
    return {"stage": "export describe", "path": str(artifact.path), **found}


def _export_checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    from export.config import graph_kind
    from export.onnx_graph import build_onnx
    from foundation.artifact import load, make
    from recommender.data import load_dataset
    from recommender.split import build_sequences
    from recommender.student import load_student

    recipe = _torch_pipeline(arguments).recipe
    student, data = load(arguments.student), load(arguments.dataset, "dataset")
    sequences = build_sequences(load_dataset(data))
    made = make(
        arguments.out,
        graph_kind(recipe.export.dtype),
        recipe={"export": recipe.export.of_graph()},
        inputs={"data": data, "student": student},
        build=lambda draft: build_onnx(load_student(student), sequences, recipe.export, student.digest, draft),
        overwrite=arguments.overwrite,
    )
    return {"stage": "export checkpoint", "path": str(made.path), "artifact_bytes": made.num_bytes, **made.metrics}


def _check_latency(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmark.gate.command import Asked, check_latency

    recipe = _pipeline(arguments).recipe
    names = ("base", "head", "student", "junit", "history")
    asked = Asked(data=arguments.dataset, **{name: getattr(arguments, name) for name in names})
    code, found = check_latency(asked, recipe.student, recipe.gate, arguments.runs / "gate", recipe.export)
    return {"stage": "check-latency", "exit_code": code, **found}


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmark.compare import compare, to_text

    found = compare(arguments.first, arguments.second)
    print(to_text(found))
    return {"stage": "compare", **found}


def _prove_gate(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmark.gate.prove import prove_gate

    recipe = _pipeline(arguments).recipe
    found = prove_gate(recipe.student, recipe.gate, arguments.ledger, arguments.runs / "gate", arguments.max_minutes)
    return {"stage": "prove-gate", **found}


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmark.markdown import to_terminal

    artifact = _torch_pipeline(arguments).report(arguments.quick)
    report = json.loads((artifact.path / "report.json").read_bytes())
    print(to_terminal(report))
    print(f"\nthe whole report: {artifact.path / 'report.html'} (or report.md beside it)")
    failed = int(bool(artifact.metrics["failed"]))
    return {"stage": "bench", "path": str(artifact.path / "report.json"), "exit_code": failed, **artifact.metrics}


def _inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    from foundation.artifact import load

    artifact = load(arguments.artifact)
    artifact.verify()
    if artifact.kind == "llm":  # may refer to a folder elsewhere
        from distill.llm import llm_folder

        llm_folder(artifact)
    print(f"{artifact.path}: {_described(artifact.digest, artifact.manifest)}")
    for line in _provenance(artifact.manifest["inputs"], artifact.ancestors, set()):
        print(line)
    return {"stage": "inspect", "path": str(artifact.path), "digest": artifact.digest, "whole": True, **artifact.manifest}


def _provenance(inputs: Mapping[str, str], ancestors: Mapping[str, Any], shown: set[str], indent: str = "") -> Iterator[str]:
    """What it was made from, what that was made from, and so on to the first; each is unfolded once."""
    for number, (name, digest) in enumerate(sorted(inputs.items()), 1):
        last = number == len(inputs)
        above = digest in shown and ancestors[digest]["inputs"]
        line = (
            f"{indent}{'└─' if last else '├─'} {name}: {_described(digest, ancestors[digest])}{' (see above)' if above else ''}"
        )
        yield console.one_line(line)
        if digest not in shown:
            shown.add(digest)
            yield from _provenance(ancestors[digest]["inputs"], ancestors, shown, indent + ("   " if last else "│  "))


def _described(digest: str, entry: Mapping[str, Any]) -> str:
    seed = "" if entry["seed"] is None else f", seed {entry['seed']}"
    return f"{entry['kind']} {digest[:12]}{seed}, {sum(file['bytes'] for file in entry['files'].values()):,} bytes"


if __name__ == "__main__":
    sys.exit(run())
