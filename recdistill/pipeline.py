"""Which stage reads what, and where its artefact lies.

    RUNS/llm/NAME                                 the LLM
    RUNS/DATASET/data, popularity, item-knn, text, text-encoder, targets (of all seeds), targets-control-ensemble-kd
    RUNS/DATASET/seed-S/control-id, control-text, control-ensemble-kd, teacher, audit, targets, student
    RUNS/DATASET/view-NAME, seed-S/view-NAME      where a view of the recipe teaches: its item text and its arm
    RUNS/DATASET/ease, ease-text, ease-words      where a linear model teaches
    RUNS/DATASET/seed-S/item-encoder, text-tuned, control-tuned          where the recipe tunes an item encoder
    RUNS/DATASET/seed-S/onnx/ARM, student-int8, student-int4, teacher-int8, teacher-nf4, student-trt,
                                                  student-openvino, student-triton
    RUNS/DATASET/report, report-quick

A method that is named after an artefact returns it, making it (and what it needs) only if it is not there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config import EASE, EASE_TEXT, EASE_WORDS, LINEAR, VIEW
from foundation import console
from foundation.artifact import Artifact, Draft, Unavailable, make
from foundation.failure import first_line
from foundation.recipe import slug
from recdistill.recipe import Recipe

if TYPE_CHECKING:
    from benchmark.report import Row
    from distill.config import TargetsSection, TextSection
    from distill.tracking import Tracker
    from export.verify import Row as VerifiedRow
    from recommender.ranking import Recommender
    from recommender.split import Sequences

# What a kind of artefact is made by, counted: one that was made by another rule is not taken for it.
_RULES = {"teacher": 2, "audit": 3}  # scores in float32; the intervals of all slices together, the controls' own figures
ENSEMBLE, TUNED, ITEM_ENCODER = "control-ensemble-kd", "control-tuned", "item-encoder"


def prepare_torch(recipe: Recipe) -> None:
    """Threads as the recipe says, attention that does not plan for every new shape, and libraries that keep quiet."""
    import torch
    import transformers

    torch.backends.cuda.enable_cudnn_sdp(False)  # 8 ms a layer for a shape not seen before, on an H200 (docs/log.md)
    if recipe.num_threads:
        torch.set_num_threads(recipe.num_threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def targets_section(recipe: Recipe, arm: str) -> TargetsSection:
    """Who teaches `arm`: the recipe's members, or, without the LLM, the seeds of control-text (and `ease`)."""
    if arm != ENSEMBLE:
        return recipe.targets
    linear = sum(weight for who, weight in recipe.targets.members.items() if who in LINEAR)
    members = {"control-text": 1.0} | ({EASE: linear} if linear else {})
    return recipe.targets.model_copy(update={"members": members, "seeds": "all"})


class Pipeline:
    """The stages of one recipe under one runs folder."""

    def __init__(self, recipe: Recipe, runs: Path, overwrite: bool = False, tensorboard: Path | None = None) -> None:
        self.recipe, self.runs, self.overwrite, self.tensorboard = recipe, runs, overwrite, tensorboard
        self.folder = runs / recipe.name
        self.told: set[int] = set()  # seeds whose audit was said

    @cached_property
    def data(self) -> Artifact:
        from recommender.cleaning import write_dataset
        from recommender.importers import read, source_digests

        section = self.recipe.data
        recipe = self._sections("data") | {"digests": source_digests(section.importer, section.source, section.options)}

        def build(draft: Draft) -> None:
            write_dataset(read(section.importer, section.source, section.options), draft, section.max_quarantined_fraction)

        return self._make(self.folder / "data", "dataset", recipe, {}, build)

    @cached_property
    def sequences(self) -> Sequences:
        from recommender.data import load_dataset
        from recommender.split import build_sequences, require_usable

        self.data.verify()
        sequences = build_sequences(load_dataset(self.data))
        require_usable(sequences)
        return sequences

    def baseline(self, name: str) -> Artifact:
        from recommender.baselines import build_baseline

        return self._make(
            self.folder / name, name, {}, {"data": self.data}, lambda draft: build_baseline(name, self.sequences, draft)
        )

    @cached_property
    def llm(self) -> Artifact:
        from distill.llm import build_llm, llm_key, require_depth

        name = self.recipe.teacher.llm
        llm = self._make(self.runs / "llm" / slug(name), "llm", llm_key(name), {}, lambda draft: build_llm(name, draft))
        texts = {"text": self.recipe.text} | {f"views.{name}": self.recipe.view(name) for name in self.recipe.views}
        require_depth(llm, {key: text.layers for key, text in texts.items()}, self.recipe.teacher.num_layers)
        return llm

    @cached_property
    def text(self) -> Artifact:
        return self._text(self.folder / "text", self.llm, self.recipe.text)

    def _text(self, out: Path, llm: Artifact, section: TextSection, seed: int | None = None) -> Artifact:
        from distill.text import build_text
        from recommender.data import load_dataset

        def build(draft: Draft) -> None:
            build_text(llm, load_dataset(self.data).items, section, draft)

        recipe = {"text": section.model_dump(mode="json")}
        inputs = {"data": self.data} | ({"llm": llm} if section.encoder == "llm" else {})
        return self._make(out, "item-text", recipe, inputs, build, seed)

    def item_encoder(self, seed: int) -> Artifact:
        """The LLM tuned to encode items: an LLM again, and the recommender it was trained in."""
        from distill.item_encoder import build_item_encoder
        from distill.text import prompts_of
        from recommender.data import load_dataset

        section, text = self.recipe.item_encoder, self.recipe.text
        if section is None:
            raise ValueError("the recipe has no section item_encoder")

        def build(draft: Draft) -> None:
            prompts = prompts_of(load_dataset(self.data).items, text)
            architecture, tracker = self.recipe.student, self._tracker(ITEM_ENCODER, seed)
            build_item_encoder(self.llm, prompts, self.sequences, section, text, architecture, seed, draft, control, tracker)

        recipe = self._sections("item_encoder", "num_threads")
        recipe["student"] = self.recipe.student.model_dump(mode="json", exclude={"optim"})
        recipe["text"] = text.model_dump(mode="json", include={"prompt", "layers", "max_tokens"})
        inputs, control = {"data": self.data, "llm": self.llm}, None
        if section.init == "control-text":
            control = self.arm("control-text", seed), self.text
            inputs |= {"control-text": control[0], "text": control[1]}
        return self._make(self._seeded(seed, ITEM_ENCODER), ITEM_ENCODER, recipe, inputs, build, seed)

    def llm_of(self, arm: str, seed: int) -> Artifact:
        """The LLM that encodes the items for an arm: where the recipe tunes one, the tuned, but for the controls without it."""
        tuned = self.recipe.item_encoder is not None and arm not in ("control-text", ENSEMBLE)
        return self.item_encoder(seed) if tuned else self.llm

    def text_of(self, arm: str, seed: int) -> Artifact:
        """The item text vectors of an arm."""
        if arm.startswith(VIEW):
            return self._text(self.folder / arm, self.llm, self.recipe.view(arm.removeprefix(VIEW)))
        llm = self.llm_of(arm, seed)
        return self.text if llm is self.llm else self._text(self._seeded(seed, "text-tuned"), llm, self.recipe.text, seed)

    def text_encoder(self) -> Artifact:
        """What made the item text vectors of the first seed's student, as an ONNX graph for services."""
        from export.text_encoder import build_text_encoder
        from recommender.data import load_dataset

        section, seed = self.recipe.export.text_encoder, self.recipe.seeds[0]
        text, llm = self.text_of("student", seed), self.llm_of("student", seed)

        def build(draft: Draft) -> None:
            build_text_encoder(text, llm, load_dataset(self.data).items, section, draft)

        recipe = {"text_encoder": section.model_dump(mode="json")}
        inputs = {"data": self.data, "llm": llm, "text": text}
        return self._make(self.folder / "text-encoder", "text-encoder", recipe, inputs, build)

    def teacher(self, seed: int) -> Artifact:
        from distill.llm import require_projections
        from distill.text import prompts_of
        from distill.train_teacher import build_teacher
        from recommender.data import load_dataset

        text, start = self.text_of("teacher", seed), self.recipe.teacher.item_init
        inputs = {"data": self.data, "llm": self.llm, "text": text}
        if start != "random":
            inputs[start] = self.arm(start, seed)

        def build(draft: Draft) -> None:
            heads, (first, *_) = self.recipe.relation_heads, self.recipe.targets.members
            if heads and first == "teacher":
                require_projections(self.llm, heads)
            control = inputs.get(start)
            section, tracker = self.recipe.teacher, self._tracker("teacher", seed)
            prompts = prompts_of(load_dataset(self.data).items, self.recipe.text) if section.items == "text" else []
            build_teacher(self.llm, text, control, self.sequences, section, seed, draft, tracker, prompts)

        return self._make(
            self._seeded(seed, "teacher"), "teacher", self._sections("teacher", "num_threads"), inputs, build, seed
        )

    def audit(self, seed: int) -> Artifact:
        from distill.audit import build_audit

        others = {name: self.baseline(name) for name in ("popularity", "item-knn")}
        others |= {name: self.arm(name, seed) for name in self.controls if name != ENSEMBLE}
        teacher, members = self.teacher(seed), self.members(self.recipe.targets, seed)
        inputs, recipe = {"data": self.data, "teacher": teacher, **others}, {}
        if [artifact.path for _, artifact in members.values()] == [teacher.path]:
            members = {}
        else:
            inputs |= {f"member {name}": artifact for name, (_, artifact) in members.items()}
            recipe = {"members": {name: weight for name, (weight, _) in members.items()}}

        def build(draft: Draft) -> None:
            build_audit(teacher, others, self.sequences, draft, list(members.values()))

        return self._make(self._seeded(seed, "audit"), "audit", recipe, inputs, build, seed)

    def tell_audit(self, seed: int) -> None:
        """Say, once, what the audit found: before anything is distilled at the latest, whichever command needs it."""
        from distill.audit import tell

        if seed not in self.told:
            self.told.add(seed)
            tell(self.audit(seed))

    @property
    def linear(self) -> list[str]:
        """The linear models that teach an arm of the recipe."""
        arms = ("student", *([ENSEMBLE] if self.recipe.distill.ensemble_control else []))
        who = {who for arm in arms for who in targets_section(self.recipe, arm).members}
        return [name for name in LINEAR if name in who]

    @property
    def controls(self) -> list[str]:
        """The arms that the student is compared with."""
        tuned = [TUNED] if self.recipe.item_encoder else []
        return ["control-id", "control-text", *([ENSEMBLE] if self.recipe.distill.ensemble_control else []), *tuned]

    def targets(self, arm: str, seed: int) -> Artifact:
        """What teaches `arm`."""
        from distill.members import Ensemble, open_member
        from distill.objectives.config import states_needed
        from distill.targets import build_targets

        section, states = targets_section(self.recipe, arm), states_needed(self.recipe.distill.objectives)
        name = f"targets-{ENSEMBLE}" if arm == ENSEMBLE else "targets"
        shared, members = section.seeds == "all", self.members(section, seed)

        def build(draft: Draft) -> None:
            teaching = Ensemble([(weight, open_member(artifact)) for weight, artifact in members.values()])
            build_targets(teaching, self.sequences, section, draft, states)

        options = section.model_dump(mode="json", exclude=set() if section.ends else {"ends"})
        recipe = self._sections("num_threads") | {"targets": options}
        recipe |= {"states": states, "states_of": next(iter(members))} if states else {}
        inputs = {"data": self.data} | {key: artifact for key, (_, artifact) in members.items()}
        out = self.folder / name if shared else self._seeded(seed, name)
        return self._make(out, "targets", recipe, inputs, build, None if shared else seed)

    def ease(self, name: str) -> Artifact:
        """The linear model, `ease`, or, by item texts as well, `ease-text` and `ease-words`."""
        from distill.ease import build_ease
        from distill.text import load_text, prompts_of
        from distill.words import word_vectors
        from recommender.data import load_dataset

        section, text, length = self.recipe.ease, self.recipe.text, self.recipe.student.max_length
        inputs = {"data": self.data} | ({"text": self.text} if name == EASE_TEXT else {})

        def build(draft: Draft) -> None:
            text_IZ = load_text(inputs["text"])[1] if name == EASE_TEXT else None
            if name == EASE_WORDS:
                text_IZ = word_vectors(prompts_of(load_dataset(self.data).items, text), text.student_dims)
            build_ease(self.sequences, section, length, draft, text_IZ)

        options = section.model_dump(mode="json", exclude={"text_weight"} if name == EASE else None, exclude_none=True)
        recipe = {"ease": options, "max_length": length, **self._sections("num_threads")}
        if name == EASE_WORDS:
            recipe["text"] = text.model_dump(mode="json", include={"prompt", "student_dims"})
        return self._make(self.folder / name, name, recipe, inputs, build)

    def members(self, section: TargetsSection, seed: int) -> dict[str, tuple[float, Artifact]]:
        """Who teaches a student of this seed, with their weights."""
        special = {"teacher": self.teacher, ITEM_ENCODER: self.item_encoder}
        seeds, found = self.recipe.seeds if section.seeds == "all" else [seed], dict[str, tuple[float, Artifact]]()
        for who, weight in section.members.items():
            if who in LINEAR:  # one for all seeds
                found[who] = weight, self.ease(who)
            else:
                found |= {f"{who}-{own}": (weight, special.get(who, partial(self.arm, who))(own)) for own in seeds}
        return found

    def arm(self, arm: str, seed: int) -> Artifact:
        """control-id, control-text, control-tuned, control-ensemble-kd, view-NAME or student."""
        from distill.audit import worse_slices
        from distill.targets import load_targets
        from distill.text import load_text
        from distill.train_student import build_student

        inputs = {"data": self.data}
        if arm != "control-id":
            inputs["text"] = self.text_of(arm, seed)
        taught = arm in ("student", ENSEMBLE)
        if taught:
            inputs["targets"] = self.targets(arm, seed)
        if arm == "student" and self.recipe.distill.follow_audit:
            inputs["audit"] = self.audit(seed)

        def build(draft: Draft) -> None:
            if taught:
                self.tell_audit(seed)
            options: dict[str, Any] = {"tracker": self._tracker(arm, seed)}
            if "text" in inputs:
                options["text_IZ"] = load_text(inputs["text"])[1]
            if "targets" in inputs:
                options |= {
                    "targets": load_targets(inputs["targets"], self.sequences.num_items),
                    "distill": self.recipe.distill,
                }
            options["untaught"] = worse_slices(inputs["audit"]) if "audit" in inputs else []
            options["regularisers"] = self.recipe.regularisers
            build_student(arm, self.sequences, self.recipe.student, seed, draft, **options)

        sections = ["student", "num_threads", *(["distill"] if taught else [])]
        sections += ["regularisers"] if self.recipe.regularisers else []
        recipe = self._sections(*sections)
        for other in ("ensemble_control", *(["follow_audit"] if arm == ENSEMBLE else [])):  # they say nothing of this arm
            recipe.get("distill", {}).pop(other, None)
        if recipe.get("distill", {}).get("dropout", 0) is None:
            del recipe["distill"]["dropout"]
        return self._make(self._seeded(seed, arm), arm, recipe, inputs, build, seed)

    def onnx(self, arm: str, seed: int, precision: str = "") -> Artifact:
        """The serving graph, in the recipe's precision or another one."""
        from export.config import graph_kind
        from export.onnx_graph import build_onnx
        from recommender.student import load_student

        student, section = self.arm(arm, seed), self.recipe.export
        precision = precision or section.dtype
        name = arm if precision == section.dtype else f"{arm}-{precision}"

        def build(draft: Draft) -> None:
            build_onnx(load_student(student), self.sequences, section, student.digest, draft, precision)

        recipe = {"export": section.of_graph()}
        inputs = {"data": self.data, "student": student}
        return self._make(self._seeded(seed, "onnx") / name, graph_kind(precision), recipe, inputs, build, seed)

    def quantized_student(self, method: str, seed: int) -> Artifact:
        from quantize.graph import build_quantized_graph

        exported = self.onnx("student", seed, "fp32")

        def build(draft: Draft) -> None:
            build_quantized_graph(method, exported, self.sequences, self.recipe.quantize, draft)

        inputs = {"data": self.data, "onnx": exported}
        return self._make(
            self._seeded(seed, f"student-{method}"), f"onnx-{method}", self._sections("quantize"), inputs, build, seed
        )

    def quantized_teacher(self, method: str, seed: int) -> Artifact:
        from quantize.llm import build_quantized_llm

        teacher = self.teacher(seed)
        return self._make(
            self._seeded(seed, f"teacher-{method}"),
            f"teacher-{method}",
            self._sections("teacher"),
            {"data": self.data, "teacher": teacher},
            lambda draft: build_quantized_llm(method, teacher, self.sequences, draft),
            seed,
        )

    def tensorrt(self, seed: int) -> Artifact:
        from quantize.methods import ENGINE_METHODS
        from recommender.student import StudentRecommender, load_student

        graphs = {
            precision: self.quantized_student(ENGINE_METHODS[precision], seed)
            if precision in ENGINE_METHODS
            else self.onnx("student", seed, precision)
            for precision in self.recipe.export.tensorrt.precisions
        }
        student = self.arm("student", seed)
        out, reference = self._seeded(seed, "student-trt"), lambda: StudentRecommender(load_student(student))
        return self._engines(out, graphs, student, reference, student.metrics["num_parameters"], seed)

    def _engines(
        self,
        out: Path,
        graphs: dict[str, Artifact],
        student: Artifact,
        reference: Callable[[], Recommender],
        num_parameters: int,
        seed: int,
    ) -> Artifact:
        from distill.device import gpu_name
        from export.tensorrt_engine import build_engines
        from recommender.runtimes.tensorrt import import_tensorrt

        module, flavour = import_tensorrt()
        recipe = {"export": self.recipe.export.model_dump(mode="json", exclude={"triton", "text_encoder"})}
        recipe |= {"flavour": flavour, "tensorrt": module.__version__, "gpu": gpu_name()}

        def build(draft: Draft) -> None:
            build_engines(graphs, reference(), num_parameters, self.sequences, self.recipe.export, draft)

        inputs = {"data": self.data, "student": student} | {f"onnx-{precision}": graph for precision, graph in graphs.items()}
        return self._make(out, "tensorrt", recipe, inputs, build, seed)

    def openvino(self, seed: int) -> Artifact:
        from export.openvino_ir import build_ir

        graph, section = self.onnx("student", seed), self.recipe.export

        def build(draft: Draft) -> None:
            build_ir(graph, self.sequences, section, draft)

        inputs = {"data": self.data, "onnx": graph}
        return self._make(
            self._seeded(seed, "student-openvino"), "openvino", {"export": section.of_graph()}, inputs, build, seed
        )

    def triton(self, seed: int) -> Artifact:
        """A model repository of the student's graph, and of its engines where they are for Triton's own TensorRT."""
        from export.triton import build_repository
        from recommender.runtimes.tensorrt import TensorRTUnavailable, import_tensorrt

        graph = self.onnx("student", seed)
        inputs = {"onnx": graph}
        try:
            if import_tensorrt()[1] == "tensorrt":
                inputs["tensorrt"] = self.tensorrt(seed)
        except TensorRTUnavailable:
            pass
        section, length = self.recipe.export, self.recipe.student.max_length

        def build(draft: Draft) -> None:
            build_repository(graph, inputs.get("tensorrt"), section.triton, length, draft)

        recipe = {"triton": section.triton.model_dump(mode="json"), "max_length": length}
        return self._make(self._seeded(seed, "student-triton"), "triton", recipe, inputs, build, seed)

    def appended(self, items: Path, out: Path, graph: Path | None, seed: int) -> Artifact:
        """A graph (the student's, or one that was appended to before) with the items of a Parquet table added."""
        from export.append import build_appended
        from foundation.artifact import load, sha256_file
        from recommender.data import read_parquet

        raw, student = read_parquet(items), self.arm("student", seed)
        base = load(graph) if graph else self.onnx("student", seed)
        text, llm = self.text_of("student", seed), self.llm_of("student", seed)
        inputs = {"onnx": base, "data": self.data, "student": student, "text": text, "llm": llm}
        fraction = self.recipe.data.max_quarantined_fraction

        def build(draft: Draft) -> None:
            build_appended(raw, base, student, text, llm, self.sequences, fraction, draft)

        recipe = {"items_sha256": sha256_file(items), "max_quarantined_fraction": fraction}
        return self._make(out, base.kind, recipe, inputs, build, seed)

    def appended_engines(self, appended: Artifact, seed: int) -> Artifact:
        """The engines of a graph that was appended to, beside it; so are its graphs in their precisions."""
        from export.append import build_in_precision
        from quantize.graph import build_quantized_graph
        from quantize.methods import ENGINE_METHODS
        from recommender.runtimes.base import GRAPH
        from recommender.runtimes.onnxruntime import OnnxRecommender

        student, section = self.arm("student", seed), self.recipe.export

        def in_precision(precision: str) -> Artifact:
            method = ENGINE_METHODS.get(precision)

            def build(draft: Draft) -> None:
                if method:
                    build_quantized_graph(method, appended, self.sequences, self.recipe.quantize, draft)
                else:
                    build_in_precision(precision, appended, student, self.sequences, section, draft)

            name, recipe = method or precision, self._sections("quantize") if method else {"export": section.of_graph()}
            inputs = {"data": self.data, "onnx": appended, "student": student}
            return self._make(
                appended.path.with_name(f"{appended.path.name}-{name}"), f"onnx-{name}", recipe, inputs, build, seed
            )

        graphs = {
            precision: appended if precision == "fp32" else in_precision(precision) for precision in section.tensorrt.precisions
        }
        out, reference = appended.path.with_name(f"{appended.path.name}-trt"), lambda: OnnxRecommender(appended.file(GRAPH))
        return self._engines(out, graphs, student, reference, appended.metrics["num_parameters"], seed)

    def verified(self, seed: int) -> Iterator[VerifiedRow]:
        """The student's graphs, in every runtime here, against the student in PyTorch."""
        from export.parity import answers, parity_requests
        from export.verify import verify_graph
        from quantize.methods import SERVED_METHODS
        from recommender.runtimes.base import GRAPH
        from recommender.student import StudentRecommender, load_student

        section = self.recipe.export
        requests = parity_requests(self.sequences, section.parity_histories, section.k)
        reference = answers(StudentRecommender(load_student(self.arm("student", seed))), requests, section.k)
        graphs = {precision: self.onnx("student", seed, precision) for precision in ("fp32", "fp16")}
        graphs |= {method: self.quantized_student(method, seed) for method in SERVED_METHODS}
        for name, graph in graphs.items():
            precision = name.partition("-")[0]
            yield from verify_graph(f"student-{name}", graph.file(GRAPH), precision, reference, requests, section)

    def report(self, quick: bool = False) -> Artifact:
        """Measure every variant anew: a report is never reused. A quick one lies beside the whole one."""
        from benchmark.report import Row, build_report
        from distill.text import load_text
        from quantize.methods import LLM_METHODS, SERVED_METHODS

        seeds = self.recipe.seeds
        rows = [Row(name, [self.baseline(name)] * len(seeds)) for name in ("popularity", "item-knn")]
        rows += [self._row(arm, lambda seed, arm=arm: self.onnx(arm, seed), seeds) for arm in self.controls]
        rows += [Row("teacher", [self.teacher(seed) for seed in seeds])]
        rows += [self._row(f"teacher-{m}", lambda seed, m=m: self.quantized_teacher(m, seed), seeds) for m in LLM_METHODS]
        student = self._row("student", lambda seed: self.onnx("student", seed), seeds)
        lacking = "" if find_spec("openvino") else "OpenVINO is not installed; pip install -e .[openvino]"
        rows += [student, replace(student, variant="student-openvino", missing=student.missing or lacking, runtime="openvino")]
        rows += [self._row(f"student-{m}", lambda seed, m=m: self.quantized_student(m, seed), seeds) for m in SERVED_METHODS]
        rows += self._row("student-trt", self.tensorrt, seeds[:1]).engines()
        section = self.recipe.benchmark
        if section.full:
            from export.aotinductor import lacks_compiler

            reasons = {"pytorch": "", "aotinductor": lacks_compiler()}
            students, graph = [self.arm("student", seed) for seed in seeds], self.recipe.export.graph_options
            rows += [
                Row(f"student-{runtime}", students, runtime=runtime, graph=graph, missing=missing)
                for runtime, missing in reasons.items()
            ]
        if section.endpoint:
            address = f"{section.endpoint}/{self.recipe.export.triton.name}"
            rows += [replace(student, variant="student-endpoint", artifacts=student.artifacts[:1], endpoint=address)]
        inputs = {f"{row.variant}/{i}": artifact for row in rows for i, artifact in enumerate(row.artifacts)} | {
            "data": self.data,
            "text": self.text,
        }
        text = load_text(self.text)[0]
        trained = {name: self.arm(name, seeds[0]) for name in (*self.controls, "student")}
        trained["teacher"] = self.teacher(seeds[0])
        inputs |= {f"{name}/trained": artifact for name, artifact in trained.items()}
        return make(
            self.folder / ("report-quick" if quick else "report"),
            "report",
            recipe=self._sections("benchmark"),
            inputs=inputs,
            build=lambda draft: build_report(rows, self.data, text, self.llm, self.recipe.student, section, draft, trained),
            remake=True,
        )

    @staticmethod
    def _row(variant: str, make_one: Callable[[int], Artifact], seeds: list[int]) -> Row:
        """A row whose artefacts may be impossible to make, here or at all; it then says why, and the rest is measured."""
        from benchmark.report import Row

        try:
            return Row(variant, [make_one(seed) for seed in seeds])
        except Unavailable as error:
            return Row(variant, [], missing=str(error))
        except (RuntimeError, MemoryError, OSError) as error:  # not what the user has to mend: recipe, data, artefacts
            console.say(f"{variant} cannot be made: {error}")
            return Row(variant, [], missing=first_line(str(error), type(error).__name__), broken=True)

    def _tracker(self, name: str, seed: int) -> Tracker:
        from distill.tracking import open_tracker

        return open_tracker(self.tensorboard / self.recipe.name / f"seed-{seed}" / name if self.tensorboard else None)

    def _sections(self, *names: str) -> dict[str, Any]:
        dumped = self.recipe.model_dump(mode="json")
        return {name: dumped[name] for name in names}

    def _seeded(self, seed: int, name: str) -> Path:
        return self.folder / f"seed-{seed}" / name

    def _make(
        self,
        out: Path,
        kind: str,
        recipe: dict[str, Any],
        inputs: dict[str, Artifact],
        build: Callable[[Draft], None],
        seed: int | None = None,
    ) -> Artifact:
        if out in self._made:
            return self._made[out]
        recipe = recipe | ({"rule": _RULES[kind]} if kind in _RULES else {})
        self._made[out] = make(out, kind, recipe=recipe, inputs=inputs, build=build, seed=seed, overwrite=self.overwrite)
        return self._made[out]

    @cached_property
    def _made(self) -> dict[Path, Artifact]:
        """What this run has made or reused, so that it is said once."""
        return {}
