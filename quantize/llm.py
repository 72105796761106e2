"""Stage: the teacher with its LLM body quantized by bitsandbytes (on CUDA or CPU), judged on ranking."""

from __future__ import annotations

import importlib
import shutil

from torch import nn

from distill.config import TeacherSection
from distill.device import device
from distill.evaluation import record_accuracy
from distill.llm import read_body
from distill.teacher import BODY, HEAD, read_teacher, serving_teacher
from foundation.artifact import Artifact, Draft, Unavailable
from quantize.methods import LLM_METHODS
from recommender.split import Sequences


def build_quantized_llm(method: str, teacher: Artifact, sequences: Sequences, draft: Draft) -> None:
    """Quantize the linear layers of the body, save them packed, and evaluate what was saved."""
    config = importlib.import_module(LLM_METHODS[method]).config()
    device_map = {"": str(device())}
    body = read_body(teacher.folder(BODY), quantization_config=config, device_map=device_map)
    _check_shapes(body, method)
    body.save_pretrained(draft.path / BODY)
    shutil.copyfile(teacher.file(HEAD), draft.path / HEAD)
    section = TeacherSection.model_validate(teacher.recipe["teacher"])
    record_accuracy(serving_teacher(read_teacher(draft.path, section)), sequences, draft)


def _check_shapes(body: nn.Module, method: str) -> None:
    """bitsandbytes packs 4-bit weights on the CPU by 32 rows and blocks of 64 columns, and fails obscurely elsewhere."""
    if method != "nf4" or next(body.parameters()).device.type != "cpu":
        return
    for name, module in body.named_modules():
        if hasattr(module, "quant_type") and (module.in_features % 64 or module.out_features % 32):  # type: ignore[operator]
            raise Unavailable(
                f"nf4 on the CPU needs layers of a multiple of 64 inputs and 32 outputs; {name} has {module.in_features} and "
                f"{module.out_features}; quantize this teacher on a CUDA device"
            )
