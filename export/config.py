"""Recipe section of export."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from foundation.recipe import Contradiction, Section

GraphInput = Literal["exclude", "candidates", "query"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8"]
MIN_CAPABILITY = {"bf16": 80, "fp8": 89}  # compute capability (times ten) from which a GPU has the type


def graph_kind(precision: str) -> str:
    """The kind of the artefact that holds an exported graph of `precision`."""
    return "onnx" if precision == "fp32" else f"onnx-{precision}"


class TensorRTSection(Section):
    """The engines: one per precision, each for all targets that have it."""

    precisions: list[Precision] = Field(default=["fp32", "fp16", "int8"], min_length=1)
    targets: list[Annotated[str, Field(pattern=r"^sm\d{2,3}$")]] = Field(
        default=["sm80", "sm89", "sm120"], min_length=1, description="compute capabilities, where the builder can be told (RTX)"
    )
    profiles: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(
        default=[[1, 1], [2, 16], [17, 256]], min_length=1, description="ranges of batch sizes, each optimized by itself"
    )
    max_length: int = Field(default=1024, ge=2, description="of a history; raised to the longest one of the data")
    max_listed: int = Field(default=1024, ge=2, description="items in `exclude` and `candidates`, where the graph has them")

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> TensorRTSection:
        for name in ("precisions", "targets"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                key = f"export.tensorrt.{name}"
                raise Contradiction(f"{key} = {getattr(self, name)} names one twice", key)
        expected = 1
        for first, last in self.profiles:
            if first != expected or last < first:
                raise Contradiction(
                    f"export.tensorrt.profiles = {self.profiles} must be ranges that follow one another from 1 on, as "
                    "[[1, 1], [2, 16], [17, 256]]",
                    "export.tensorrt.profiles",
                )
            expected = last + 1
        if self.profiles[-1][1] < 64:
            raise Contradiction(
                f"export.tensorrt.profiles = {self.profiles} ends below 64, the batch size the benchmark asks for",
                "export.tensorrt.profiles",
            )
        for precision in self.precisions:
            if not self.targets_of(precision):
                raise Contradiction(
                    f"export.tensorrt.precisions has {precision!r}, which needs sm{MIN_CAPABILITY[precision]} or later, and "
                    f"export.tensorrt.targets = {self.targets}",
                    "export.tensorrt.precisions",
                    "export.tensorrt.targets",
                )
        return self

    def targets_of(self, precision: str) -> list[str]:
        """The targets whose hardware has `precision`."""
        return [target for target in self.targets if int(target[2:]) >= MIN_CAPABILITY.get(precision, 0)]


class TritonSection(Section):
    """The model repository for Triton Inference Server."""

    name: str = Field(default="recommender", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="of the model, in requests")
    version: int = Field(default=1, ge=1, description="of the model; the server keeps the latest `keep_versions`")
    keep_versions: int = Field(default=2, ge=1, description="so that a roll-back is at hand")
    max_batch_size: int = Field(default=64, ge=1, le=65536)
    max_queue_delay_us: int = Field(default=500, ge=0, description="how long a request waits for others to share a batch with")
    max_queue_size: int = Field(default=1024, ge=1, description="requests that wait; more are refused at once: load is shed")
    queue_timeout_us: int = Field(default=100_000, ge=1, description="a request that has waited so long is refused")
    instances: int = Field(default=1, ge=1, le=64, description="of the model, each with its own threads")
    device: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="auto: a GPU where the server has one")
    num_threads: int = Field(default=0, ge=0, description="of ONNX Runtime for each instance; 0 = its own choice")


class TextEncoderSection(Section):
    """The text encoder as a graph of its own, for new items and queries."""

    precision: Literal["fp32", "int8"] = Field(default="int8", description="of the weights")
    block_size: Literal[16, 32, 64, 128, 256] = Field(default=32, description="int8 weights that share a scale")
    min_cosine: float = Field(default=0.98, ge=-1, le=1, description="with PyTorch's vector, below which an export fails")


class ExportSection(Section):
    """The graph and the engines built from it."""

    k: int = Field(default=20, ge=10, le=3840, description="items returned; TensorRT's TopK allows at most 3840")
    dtype: Literal["fp32", "fp16"] = Field(default="fp32", description="of the table, the encoder and their products")
    inputs: list[GraphInput] = Field(default=[], description="optional inputs of the graph, beside the history")
    first_stage_dims: int = Field(
        default=0, ge=0, description="large catalogues: score all items in so many principal components first; 0 = exactly"
    )
    first_stage_items: int = Field(default=256, ge=1, le=3840, description="the best of which are then scored exactly")
    first_layer_table: bool = Field(
        default=False,
        description="look up what the first layer projects of an item: the same lists, faster, thrice the table more",
    )
    opset: int = Field(default=21, ge=18, le=24)
    parity_histories: int = Field(default=1000, ge=1)
    min_overlap: float = Field(
        default=0.99, ge=0, le=1, description="top-K overlap with PyTorch below which an export of fp32, fp16 or bf16 fails"
    )
    min_overlap_int8: float = Field(default=0.97, ge=0, le=1, description="the same where `export verify` looks at int8")
    tensorrt: TensorRTSection = TensorRTSection()
    triton: TritonSection = TritonSection()
    text_encoder: TextEncoderSection = TextEncoderSection()

    @property
    def first_stage(self) -> tuple[int, int]:
        """(dimensions, items) of the first of two stages; 0 dimensions: there is one."""
        return self.first_stage_dims, self.first_stage_items

    @property
    def graph_options(self) -> dict[str, Any]:
        """How `export.graph.ServingGraph` is made."""
        return {"first_stage": self.first_stage, "first_layer": self.first_layer_table}

    def of_graph(self) -> dict[str, Any]:
        """The keys on which an exported graph depends."""
        return self.model_dump(mode="json", exclude={"tensorrt", "triton", "text_encoder"})

    @model_validator(mode="after")
    def _once_each(self) -> ExportSection:
        if len(set(self.inputs)) < len(self.inputs):
            raise Contradiction(f"export.inputs = {self.inputs} names one twice", "export.inputs")
        if self.first_stage_dims and self.first_stage_items < self.k:
            names = ("export.first_stage_items", "export.k")
            raise Contradiction(f"{names[0]} = {self.first_stage_items} is less than {names[1]} = {self.k}", *names)
        largest = self.tensorrt.profiles[-1][1]
        if self.triton.max_batch_size > largest:
            asked = self.triton.max_batch_size
            raise Contradiction(
                f"export.triton.max_batch_size = {asked} is more than export.tensorrt.profiles cover, {largest}",
                "export.triton.max_batch_size",
                "export.tensorrt.profiles",
            )
        return self
