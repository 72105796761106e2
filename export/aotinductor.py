"""Stage: a student compiled by AOTInductor, for services that run libtorch.

`torch.export`, then C++ for this processor. A package is machine code: it is no artefact, and is opened only by its digest
(`recommender/runtimes/aotinductor.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch._inductor

from export.config import ExportSection
from export.graph import PARAMETERS, ServingGraph, dynamic_dimensions, example
from export.parity import answers, compare, parity_requests
from export.verify import require, row_of
from foundation.artifact import Artifact, Unavailable, sha256_file
from recommender.runtimes.aotinductor import PACKAGE, AotInductorRecommender
from recommender.runtimes.base import ITEM_IDS, QUERY
from recommender.split import Sequences
from recommender.student import StudentRecommender, load_student


def write_package(student: Artifact, sequences: Sequences, section: ExportSection, out: Path) -> dict[str, Any]:
    """Compile, compare with PyTorch, and only then put the folder `out` in place; its figures, the digest among them."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} is there already and is not replaced; move it away, or choose another place")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    opened = load_student(student)
    package = partial / PACKAGE
    compile_graph(
        ServingGraph(opened, section.k, **section.graph_options),
        section.inputs,
        package,
    )
    (partial / ITEM_IDS).write_text(json.dumps(sequences.item_ids))
    digest = sha256_file(package)
    requests = parity_requests(sequences, section.parity_histories, section.k)
    expected = answers(StudentRecommender(opened), requests, section.k)
    parity = compare(expected, answers(AotInductorRecommender(package, digest), requests, section.k), requests)
    require([row_of("the package", "fp32", "AOTInductor", 0, parity, section)])
    os.replace(partial, out)
    return {"sha256": digest, "bytes": (out / PACKAGE).stat().st_size, "parity": parity.to_dict()}


def lacks_compiler() -> str:
    """Why nothing can be compiled on this machine; empty where it can."""
    found = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    return "" if found else "AOTInductor needs a C++ compiler: install g++, or name one in CXX"


def compile_graph(graph: ServingGraph, inputs: Sequence[str], out: Path) -> None:
    """Write the package of `graph` with these optional inputs."""
    if lacking := lacks_compiler():
        raise Unavailable(lacking)
    request = example(graph, inputs)
    # With as many columns as the encoder reads, the slice that takes them would be traced as no slice at all.
    min_length = graph.student.section.max_length + 1
    dynamic = dynamic_dimensions(request, min_length)
    metadata = {"k": str(graph.k), "min_length": str(min_length)}
    for name in inputs:
        metadata[f"input.{name}"] = str(request[PARAMETERS[name]].shape[1] if name == QUERY else -1)
    positional = [tuple(found.get(parameter) for parameter in PARAMETERS.values()) for found in (request, dynamic)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph.eval(), positional[0], dynamic_shapes=positional[1])
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(out), inductor_configs={"aot_inductor.metadata": metadata}
        )
