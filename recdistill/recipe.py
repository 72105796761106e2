"""The whole recipe: one section per stage."""

from __future__ import annotations

from pydantic import Field

from benchmark.config import BenchmarkSection
from distill.config import DistillSection, TargetsSection, TeacherSection, TextSection
from export.config import ExportSection
from foundation.recipe import Section
from quantize.config import QuantizeSection
from recommender.config import DataSection, StudentSection


class Recipe(Section):
    """What `recdistill` reads from recipes/*.toml."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under runs/")
    about: str = Field(default="", description="one line printed before a run starts, with how long it takes")
    seeds: list[int] = Field(default=[0], min_length=1)
    num_threads: int = Field(
        0, ge=0, description="threads of training; 0 = all cores. Results are reproducible per thread count"
    )
    data: DataSection
    text: TextSection = TextSection()
    teacher: TeacherSection = TeacherSection()
    targets: TargetsSection = TargetsSection()
    student: StudentSection = StudentSection()
    distill: DistillSection = DistillSection()
    quantize: QuantizeSection = QuantizeSection()
    export: ExportSection = ExportSection()
    benchmark: BenchmarkSection = BenchmarkSection()
