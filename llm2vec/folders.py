"""What a model folder says about itself: ours, or one in the layout of the published checkpoints.

A published repository holds the configuration of its base model (whose ``auto_map`` points to
model code), a tokenizer, the MNTP adapter and ``llm2vec_config.json``, but no weights: those come
from the base model that the adapter names. A second adapter lies in a repository of its own. The
code is never run: transformers switches attention by configuration.

Folders written here (``LLM2Vec.save``, ``llm2vec export``) hold merged weights and say in the same
``llm2vec_config.json`` which attention, pooling and chat format belong to them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm2vec.adapters import ADAPTER_WEIGHTS
from llm2vec.errors import AdapterError, SettingError
from llm2vec.registry import MODELS, Model

CONFIG = "llm2vec_config.json"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER = "llm2vec_tokenizer"  # where the root's tokenizer is one for other libraries
_SMALL_FILES = [
    CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt",
]  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Parts of an encoder: ``base`` (name, hub id or folder), where its tokenizer lies when not
    with the base, adapters in the order of merging, and what ``llm2vec_config.json`` says."""

    base: str
    tokenizer: Path | None = None
    adapters: tuple[Path, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def model(self, model: Model) -> Model:
        """``model`` with the chat format that the folder was written with."""
        if "chat" not in self.settings:
            return model
        chat = self.settings["chat"]
        return replace(model, chat=tuple(chat) if chat else None)


def open_checkpoint(name: str | Path, adapters: tuple[str | Path, ...] = ()) -> Checkpoint:
    """Find backbone, tokenizer, adapters and settings of a model and further adapters.

    The last adapter's settings go before those of the base, as in the published code. Raises
    :class:`AdapterError` for an adapter that cannot be had, :class:`SettingError` for a damaged
    configuration.
    """
    folder = _folder(name)
    base, tokenizer, own = str(name), None, ()
    settings: dict[str, Any] = {}
    if folder is not None:
        settings = read_settings(folder)
        if (folder / ADAPTER_CONFIG).is_file() and not _has_weights(folder):
            base, own = _base_of(folder), (folder,)
            tokenizer = folder if any(folder.glob("tokenizer*")) else None
        elif settings.get("tokenizer"):
            tokenizer = folder / TOKENIZER
    found = tuple(adapter_path(adapter) for adapter in adapters)
    for path in found:
        settings |= read_settings(path)
    return Checkpoint(base, tokenizer, own + found, settings)


def adapter_path(name: str | Path) -> Path:
    """Folder of an adapter: a local one, else downloaded from the hub."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    found = _download(str(name))
    if found is None or not (found / ADAPTER_CONFIG).is_file():
        raise AdapterError(
            f"no adapter {str(name)!r}: neither a folder nor to be had from the hub. Give the "
            f"folder that holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}."
        )
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``llm2vec_config.json`` of a folder says; empty where there is none."""
    file = folder / CONFIG
    if not file.is_file():
        return {}
    return _json(file)


def check_output(output: Path) -> None:
    """Refuse a folder in use as the place of a new model."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingError(f"{output} is not empty; choose another --output or move it away")


def _folder(name: str | Path) -> Path | None:
    """The folder of a name that the registry does not know; None where only weights can tell."""
    text = str(name)
    if text in MODELS or text in {m.hub_id for m in MODELS.values()}:
        return None
    if Path(text).is_dir():
        return Path(text)
    return _download(text) if text.count("/") == 1 and not text.startswith((".", "/")) else None


def _download(hub_id: str) -> Path | None:
    """The small files of a hub repository; None where the hub has no such thing for us."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_SMALL_FILES))
    except Exception:  # whoever loads the weights says what is wrong and what to do
        return None


def _has_weights(folder: Path) -> bool:
    names = {file.name for file in folder.glob("*.safetensors")} - {ADAPTER_WEIGHTS}
    return bool(names) or any(folder.glob("pytorch_model*.bin"))


def _base_of(folder: Path) -> str:
    base = _json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base:
        raise AdapterError(
            f"{folder / ADAPTER_CONFIG} names no base model. Load the base model by its own name "
            "and give this folder as peft_model_name_or_path."
        )
    return str(base)


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise SettingError(f"{file}: not a JSON object")
    return values
