"""Recipe sections of distillation: the LLM, item text, the teacher, its targets and the objectives."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from distill.objectives.config import OPTIONS as OBJECTIVES
from distill.regularisers.config import OPTIONS as REGULARISERS
from foundation.recipe import Section, check_options
from recommender.config import ITEM_FIELDS, OptimSection

VIEW = "view-"  # begins the name of an arm of a view
LINEAR = EASE, EASE_TEXT, EASE_WORDS = "ease", "ease-text", "ease-words"
_WHO = ("teacher", "control-text", "control-id", "control-tuned", "item-encoder", *LINEAR)
_MEMBERS = f"{', '.join(_WHO)}, and {VIEW}NAME of the section views"


def _known_member(name: str) -> str:
    if name not in _WHO and not name.startswith(VIEW):
        raise ValueError(f"nobody is named {name!r}; known: {_MEMBERS}")
    return name


MemberName = Annotated[str, AfterValidator(_known_member)]


class TextSection(Section):
    """Item text vectors by the LLM: mean over the prompt's tokens of hidden states; principal components for the student."""

    encoder: Literal["llm", "words"] = Field(
        default="llm",
        exclude_if=lambda encoder: encoder == "llm",  # what was made before there was a choice is still that
        description="`words`: TF-IDF of the prompt's words, with no LLM (`distill/words.py`); of views alone, since texts of "
        "new items and queries are read by the LLM",
    )
    prompt: str = Field(
        default="{title} ({year}). {categories}. {text}", description="fields of items.parquet; empty ones vanish"
    )
    layers: list[Annotated[int, Field(ge=-1)]] = Field(
        default=[-1], min_length=1, description="hidden states after so many layers, side by side; -1 = after all"
    )
    max_tokens: int = Field(default=64, ge=1, le=8192)
    batch_size: int = Field(default=32, ge=1)
    student_dims: int = Field(default=128, ge=1, description="principal components given to the student")
    whiten: bool = Field(
        default=False,
        description="every component at unit variance, however little the LLM makes of it: where items have few interactions",
    )

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: list[int]) -> list[int]:
        if 0 in layers or len(set(layers)) < len(layers):
            raise ValueError("it names layers from 1 on, or -1 for all, each once")
        return layers

    @field_validator("prompt")
    @classmethod
    def _known_fields(cls, prompt: str) -> str:
        if unknown := set(re.findall(r"\{([^}]*)\}?", prompt)) - set(ITEM_FIELDS):
            raise ValueError(f"it names {', '.join(sorted(unknown))}; items.parquet may have: {', '.join(ITEM_FIELDS)}")
        return prompt


class TeacherSection(Section):
    """The LLM as a sequential recommender."""

    llm: Annotated[str, AfterValidator(os.path.normpath)] = Field(  # a folder's name is the same with "/" behind it
        default="smollm2-135m-instruct", description="asset name, local folder or hub name"
    )
    num_layers: int = Field(default=0, ge=0, description="keep the first layers only; 0 = all")
    tuning: Literal["full", "lora", "qlora"] = "lora"
    lora_rank: int = Field(default=16, ge=1, le=1024)
    body_learning_rate: float = Field(default=3e-4, gt=0, le=1, description="of the LLM's own weights or their LoRA factors")
    items: Literal["soft", "text"] = Field(
        default="soft", description="an item enters as one learned token, or as the tokens of its text, with no ID at all"
    )
    item_tokens: int = Field(default=16, ge=2, le=1024, description="of an item's text at most, where items = 'text'")
    item_init: Literal["random", "control-text", "control-tuned"] = Field(
        default="random", description="start the ID vectors at random, or at the item table of a trained arm"
    )
    item_size: int = Field(
        default=128, ge=4, le=8192, description="size of the item vectors, between the catalogue and the LLM"
    )
    item_dropout: float = Field(default=0.2, ge=0, lt=1, description="dropout on item tokens and output states")
    max_length: int = Field(default=50, ge=2, le=4096)
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto = bf16 where the hardware has it")
    optim: OptimSection = OptimSection(learning_rate=1e-3, batch_size=32, epochs=8, patience=2)


class ItemEncoderSection(Section):
    """The LLM tuned end to end to encode items (`distill/item_encoder.py`): whose vectors student and teacher then read."""

    frozen_layers: int = Field(default=0, ge=0, description="the LLM's first layers that stay as they are (cheaper)")
    body_learning_rate: float = Field(default=1e-4, gt=0, le=1, description="of the LLM's own weights")
    ids: bool = Field(default=False, description="learn an ID vector of every item beside its text; false: by text alone")
    init: Literal["random", "control-text"] = Field(
        default="control-text", description="what reads the items starts at random, or as the trained arm control-text"
    )
    optim: OptimSection = OptimSection(learning_rate=1e-3, weight_decay=0.01, batch_size=256, epochs=4, patience=2)


class EaseSection(Section):
    """The linear model (`distill/ease.py`) for members of targets: `ease` by interactions alone; also by item texts, as the LLM
    reads them, `ease-text`, or by their words, `ease-words`."""

    l2: float = Field(default=100.0, gt=0, description="regularisation, in users")
    text_weight: float = Field(
        default=30.0, gt=0, description="of `ease-text`, `ease-words`: for how many users a dimension of text counts"
    )
    recency: float | None = Field(
        default=None, gt=0, description="an item of a history counts e^(-a / recency), a items after it; left out: all alike"
    )


class TargetsSection(Section):
    """The teacher's distributions at every training position: top-K probabilities and the mass of the rest."""

    top_k: int = Field(default=100, ge=1, le=10_000, description="at most; a smaller catalogue is kept whole")
    temperature: float = Field(default=1.0, gt=0, le=100)
    ends: bool = Field(
        default=False, description="teach at the end of each user's training part as well, where the next item is not known"
    )
    members: dict[MemberName, Annotated[float, Field(ge=0)]] = Field(
        default={"teacher": 1.0},
        description="whose log-probabilities are averaged, and with which weights; 0 = left out. `view-NAME`: as control-text, "
        "of the view's text; `ease`, `ease-text`, `ease-words`: a linear model, one for all seeds, whose scores, most of "
        "them below .1, are added times their weight (50 on Amazon Games, with a recency of 5; 6 on ml-100k, with 20)",
    )
    seeds: Literal["own", "all"] = Field(
        default="own", description="own: the members of the student's seed; all: those of every seed of the recipe"
    )

    @field_validator("members")
    @classmethod
    def _those_who_teach(cls, members: dict[str, float]) -> dict[str, float]:
        if not any(members.values()):
            raise ValueError(f"nobody teaches; give a weight above 0 to one of {_MEMBERS}")
        return {name: weight for name, weight in members.items() if weight}


def _methods(what: str, options: Mapping[str, type[Section]], key: str) -> AfterValidator:
    """Every method is known, and so are its options. What has a weight is kept, with all of its options: a fingerprint that
    left defaults out would not see them change."""

    def check(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, own in sections.items():
            if name not in options:
                raise ValueError(f"no {what} is named {name!r}; known: {', '.join(options)}")
            check_options(options[name], own, f"{key}.{name}")
        whole = {name: options[name].model_validate(own).model_dump(mode="json") for name, own in sections.items()}
        return {name: own for name, own in whole.items() if own["weight"]}

    return AfterValidator(check)


Objectives = Annotated[dict[str, dict[str, Any]], _methods("objective", OBJECTIVES, "distill.objectives")]
Regularisers = Annotated[dict[str, dict[str, Any]], _methods("regulariser", REGULARISERS, "regularisers")]


class DistillSection(Section):
    """Which objectives the student learns from the teacher, and how much weight the label keeps."""

    ensemble_control: bool = Field(
        default=False,
        description="train control-ensemble-kd as well: taught by the averaged control-text seeds, and by `ease` where that, "
        "`ease-text` or `ease-words` teaches the student; no LLM",
    )
    follow_audit: bool = Field(
        default=False,
        description="the student is not taught where the audit shows those who teach worse than control-text (a slice of items "
        "or histories)",
    )
    label_weight: float = Field(
        default=1.0,
        ge=0,
        description="weight of cross-entropy on the true next item, where targets teach; `targets.ends` lowers it a little, "
        "since positions without a label count in the mean",
    )
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="of the arms that are taught, in the place of student.dropout: soft targets leave less to learn by heart",
    )
    objectives: Objectives = Field(default={"forward_kl": {"weight": 1.0}}, description="method -> its options")
