"""The whole recipe: one section per stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from benchmark.config import BenchmarkSection
from benchmark.gate.config import GateSection
from distill.config import (
    LINEAR,
    VIEW,
    DistillSection,
    EaseSection,
    ItemEncoderSection,
    Regularisers,
    TargetsSection,
    TeacherSection,
    TextSection,
)
from distill.objectives.config import MiniLmOptions, states_needed, weights_of
from export.config import ExportSection
from foundation.recipe import Contradiction, Section, check_options, slug
from quantize.config import QuantizeSection
from recommender.config import DataSection, StudentSection


def of_folder(folder: Path) -> list[str]:
    """Overrides that put a dataset folder in the place of a recipe's own source."""
    folder = folder.expanduser().resolve()
    implied = {"name": slug(folder.name), "data.importer": "folder", "data.source": str(folder)}
    # A JSON string is a TOML string.
    return [*(f"{key}={json.dumps(value)}" for key, value in implied.items()), "data.options={}"]


class Recipe(Section):
    """What `recdistill` reads from recipes/*.toml."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under runs/")
    about: str = Field(default="", description="one line printed before a run starts, with how long it takes")
    seeds: list[Annotated[int, Field(ge=0, lt=1 << 32)]] = Field(
        default=[0], min_length=1, description="every arm is trained once for each; three or more for a claim"
    )
    num_threads: int = Field(
        0, ge=0, description="threads of training; 0 = all cores. Results are reproducible per thread count"
    )
    data: DataSection
    text: TextSection = TextSection()
    views: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,49}$")], dict[str, Any]] = Field(
        default={},
        description="other texts of the same items, for members of targets: name -> the keys in which it differs from `[text]`",
    )
    item_encoder: ItemEncoderSection | None = Field(default=None, description="the LLM encodes items as it is")
    teacher: TeacherSection = TeacherSection()
    ease: EaseSection = EaseSection()
    targets: TargetsSection = TargetsSection()
    student: StudentSection = StudentSection()
    distill: DistillSection = DistillSection()
    regularisers: Regularisers = Field(default={}, description="of all arms: method -> its options")
    quantize: QuantizeSection = QuantizeSection()
    export: ExportSection = ExportSection()
    benchmark: BenchmarkSection = BenchmarkSection()
    gate: GateSection = GateSection()

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Recipe:
        student, teacher = self.student, self.teacher
        if student.hidden_size % student.num_heads:
            raise Contradiction(
                f"student.hidden_size = {student.hidden_size} is not a multiple of student.num_heads = {student.num_heads}",
                "student.hidden_size",
                "student.num_heads",
            )
        if teacher.item_init != "random" and teacher.item_size != student.hidden_size:
            raise Contradiction(
                f"teacher.item_init = {teacher.item_init!r} needs teacher.item_size = {teacher.item_size} to equal "
                f"student.hidden_size = {student.hidden_size}",
                "teacher.item_size",
                "student.hidden_size",
                "teacher.item_init",
            )
        if teacher.items == "text" and teacher.item_init != "random":
            raise Contradiction(
                f"teacher.item_init = {teacher.item_init!r} starts ID vectors, "
                "which a teacher of teacher.items = 'text' has not",
                "teacher.items",
                "teacher.item_init",
            )
        for name, own in self.views.items():
            check_options(TextSection, self.text.model_dump() | own, f"views.{name}")
        if self.text.encoder != "llm":
            raise Contradiction(
                f"text.encoder = {self.text.encoder!r} is for views: what reads the texts of new items and queries is the LLM",
                "text.encoder",
            )
        members = list(self.targets.members)
        if unknown := [who for who in members if who.startswith(VIEW) and who.removeprefix(VIEW) not in self.views]:
            raise Contradiction(
                f"targets.members names {unknown[0]}, and the recipe has no [views.{unknown[0].removeprefix(VIEW)}]",
                "targets.members",
                "views",
            )
        for key, named in (("targets.members", members), ("teacher.item_init", [teacher.item_init])):
            if self.item_encoder is None and (lacking := {"control-tuned", "item-encoder"} & set(named)):
                raise Contradiction(
                    f"{key} names {', '.join(sorted(lacking))}, which a recipe without the section item_encoder has not", key
                )
        if self.item_encoder and -1 not in self.text.layers and self.item_encoder.frozen_layers >= max(self.text.layers):
            raise Contradiction(
                f"item_encoder.frozen_layers = {self.item_encoder.frozen_layers} leaves no layer to tune of those that "
                f"text.layers = {self.text.layers} read",
                "item_encoder.frozen_layers",
                "text.layers",
            )
        needed = states_needed(self.distill.objectives)
        if needed and members[0] in LINEAR:
            raise Contradiction(
                f"an objective learns from states ({', '.join(needed)}) of the first of targets.members, and {members[0]} has "
                "none; name another one first",
                "targets.members",
                "distill.objectives",
            )
        if teacher.items == "text" and "query" in needed and members[0] == "teacher":
            raise Contradiction(
                "the objective minilm needs teacher.items = 'soft': a text has many queries, not one an item",
                "teacher.items",
                "distill.objectives.minilm",
            )
        if not self.distill.label_weight and not any(weights_of(self.distill.objectives).values()):
            raise Contradiction(
                "distill.label_weight = 0 and no objective of a weight above 0: the student would learn nothing",
                "distill.label_weight",
                "distill.objectives",
            )
        heads = self.relation_heads
        if heads and student.hidden_size % heads:
            raise Contradiction(
                f"distill.objectives.minilm.relation_heads = {heads} does not divide "
                f"student.hidden_size = {student.hidden_size}",
                "distill.objectives.minilm",
                "student.hidden_size",
            )
        if self.benchmark.k > self.export.k:
            raise Contradiction(
                f"benchmark.k = {self.benchmark.k} asks for more items than the graph returns, export.k = {self.export.k}",
                "benchmark.k",
                "export.k",
            )
        if self.export.first_layer_table and student.num_layers < 2:
            raise Contradiction(
                "export.first_layer_table looks up what the first of several layers computes, and student.num_layers = 1",
                "export.first_layer_table",
                "student.num_layers",
            )
        if len(self.seeds) < 2 and self.distill.ensemble_control:
            raise Contradiction(
                f"distill.ensemble_control averages the seeds of control-text, and seeds = {self.seeds} names one",
                "distill.ensemble_control",
                "seeds",
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise Contradiction(f"seeds = {self.seeds} names a seed twice", "seeds")
        return self

    def view(self, name: str) -> TextSection:
        """The text of a view, by its name."""
        return TextSection.model_validate(self.text.model_dump() | self.views[name])

    @property
    def idle_views(self) -> list[str]:
        """The views that are no member of targets."""
        return [name for name in self.views if f"{VIEW}{name}" not in self.targets.members]

    @property
    def of_training(self) -> str:
        """What decides which models a run trains, as JSON: two recipes in which it is the same train the same ones."""
        return self.model_dump_json(
            include={
                *("seeds", "num_threads", "data", "text", "views", "item_encoder", "teacher"),
                *("ease", "targets", "student", "distill", "regularisers"),
            }
        )

    @property
    def lesson(self) -> str:
        """Who teaches the student, and what it learns, with their weights: what is left of a recipe and its bases."""
        shares = [
            self.targets.members,
            {"label": self.distill.label_weight, **weights_of(self.distill.objectives)},
            {name: own["weight"] for name, own in self.regularisers.items()},
        ]
        taught, learnt, beside = (", ".join(f"{name} {weight:g}" for name, weight in own.items() if weight) for own in shares)
        return f"taught by {taught}; learns {learnt}" + (f"; beside it {beside}" if beside else "")

    @property
    def relation_heads(self) -> int:
        """Into how many heads the objective minilm cuts the teacher's queries, keys and values; 0 where it has no part."""
        objectives = self.distill.objectives
        if "query" not in states_needed(objectives):
            return 0
        return MiniLmOptions.model_validate(objectives["minilm"]).relation_heads
