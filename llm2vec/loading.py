"""Backbones and adapters: by registry name, hub id or folder, with errors that say what to do.

``trust_remote_code`` is never on; weights come as safetensors. Adapters are merged into the
backbone, MNTP's before SimCSE's, as the recipe trains them (paper 2.2).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
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
from llm2vec.errors import AdapterError, LLM2VecError, SettingError
from llm2vec.registry import MODELS, UNPINNED, Model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What transformers raises for what it cannot load; ImportError: a package its tokenizer needs.
_UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


class ModelNotFoundError(LLM2VecError):
    """Weights that are neither embedded, nor local, nor to be had from the hub."""


def resolve_model(name: str | Path) -> Model:
    """Registry entry of a registry name, hub id or folder; others get an entry of their own.

    A folder is known by its config's ``_name_or_path``, so that a local copy keeps the chat
    format of its model.
    """
    text = str(name)
    if text in MODELS:
        return MODELS[text]
    by_hub_id = {m.hub_id: m for m in MODELS.values()}
    if text in by_hub_id:
        return by_hub_id[text]
    origin = ""
    config_file = Path(text) / "config.json"
    if config_file.exists():
        try:
            origin = json.loads(config_file.read_text(encoding="utf-8")).get("_name_or_path") or ""
        except (ValueError, AttributeError) as error:
            raise ModelNotFoundError(f"{config_file}: not a JSON object ({error})") from error
    known = by_hub_id.get(origin)
    return Model(
        name=Path(text).name or text,
        display=Path(text).name or text,
        hub_id=text,
        revision=UNPINNED,
        architecture=known.architecture if known else "unknown",
        parameters=known.parameters if known else 0.0,
        layers=known.layers if known else 0,
        hidden_size=known.hidden_size if known else 0,
        dtype="float32",
        chat=known.chat if known else None,
        in_paper=False,
    )


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
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Backbone in evaluation mode and its tokenizer, padding token set.

    ``head=True`` keeps the language-model head (MNTP needs it); ``tokenizer`` is its folder where
    it does not lie with the weights. Raises
    :class:`ModelNotFoundError` saying what was wanted and how to provide it.
    """
    model = resolve_model(name)
    torch_dtype, torch_device = resolve_dtype(dtype, model), resolve_device(device)
    if model.asset is not None:
        source, revision = str(assets.model_folder(model.asset)), None
    else:
        source = model.hub_id
        revision = None if model.revision == UNPINNED else model.revision
    kind = AutoModelForCausalLM if head else AutoModel
    try:
        words = AutoTokenizer.from_pretrained(
            str(tokenizer or source), revision=None if tokenizer else revision
        )
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
    first = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
    lowered = str(error).lower()
    if model.gated and any(word in lowered for word in ("gated", "401", "403", "authorized")):
        return (
            f"{source} is a gated model: accept its licence on its hub page, then set HF_TOKEN to "
            "a token of that account (or run 'hf auth login') and start again."
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
            "folder of the hub's cache, and set HF_HUB_OFFLINE=1."
        )
    if "/" not in source:
        close = get_close_matches(source, MODELS, n=1)
        first += f"; did you mean {close[0]!r}?" if close else ""
        first += f"; own names are {', '.join(MODELS)}"
    return (
        f"cannot load {source} ({first}). Run where the hub can be reached, or put a copy into the "
        "hub cache or a local folder and name that folder; 'smollm2-135m' needs PyPI only."
    )


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
