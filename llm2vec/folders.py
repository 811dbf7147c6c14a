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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm2vec.adapters import ADAPTER_WEIGHTS
from llm2vec.errors import AdapterError, SettingError
from llm2vec.hub import commit_of, reason
from llm2vec.registry import MODELS, UNPINNED, Model

CONFIG = "llm2vec_config.json"
ADAPTER_CONFIG = "adapter_config.json"
FOR_THE_HUB = ("token", "cache_dir", "local_files_only")  # what every download must be told
TOKENIZER = "llm2vec_tokenizer"  # where the root's tokenizer is one for other libraries
_SMALL_FILES = [
    CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json", "tokenizer*", "special_tokens_map.json",
    f"{TOKENIZER}/*", "added_tokens.json", "vocab*", "merges.txt",
]  # fmt: skip
_PINNED = {
    hub_id: revision
    for model in MODELS.values()
    for hub_id, revision in model.published.values()
    if revision != UNPINNED
}


@dataclass(frozen=True)
class Checkpoint:
    """Parts of an encoder: ``base`` (name, hub id or folder), where its tokenizer lies when not
    with the base, adapters in the order of merging, what ``llm2vec_config.json`` says, the commit
    that a base of the hub was looked at in, and why that could not be done."""

    base: str
    tokenizer: Path | None = None
    adapters: tuple[Path, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    unread: str = ""

    def model(self, model: Model) -> Model:
        """``model`` with the chat format that the folder was written with."""
        if "chat" not in self.settings:
            return model
        chat = self.settings["chat"]
        return replace(model, chat=tuple(chat) if chat else None)


def open_checkpoint(
    name: str | Path,
    adapters: tuple[str | Path, ...] = (),
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Find backbone, tokenizer, adapters and settings of a model and further adapters.

    ``revision`` is that of ``name`` on the hub; of ``options`` those in ``FOR_THE_HUB`` are used.
    The last adapter's settings go before those of the base, as in the published code. Raises
    :class:`AdapterError` for an adapter that cannot be had, :class:`SettingError` for a damaged
    configuration.
    """
    told = {key: value for key, value in (options or {}).items() if key in FOR_THE_HUB}
    folder, unread = _folder(name), ""
    if folder is None and _may_be_on_hub(str(name)):
        folder, unread = _download(str(name), revision, told)
    base, tokenizer, own = str(name), None, ()
    settings: dict[str, Any] = {}
    if folder is not None:
        settings = read_settings(folder)
        if (folder / ADAPTER_CONFIG).is_file() and not _has_weights(folder):
            base, own = _base_of(folder), (folder,)
            tokenizer = folder if any(folder.glob("tokenizer*")) else None
        elif settings.get("tokenizer"):
            tokenizer = folder / TOKENIZER
    found = tuple(adapter_path(adapter, told) for adapter in adapters)
    for path in found:
        settings |= read_settings(path)
    commit = None if own or folder is None else commit_of(folder)
    return Checkpoint(base, tokenizer, own + found, settings, commit, unread)


def adapter_path(name: str | Path, options: Mapping[str, Any] | None = None) -> Path:
    """Folder of an adapter: a local one, else downloaded from the hub."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    found, why = _download(str(name), None, options or {})
    if found is None or not (found / ADAPTER_CONFIG).is_file():
        raise AdapterError(
            f"no adapter {str(name)!r}: neither a folder nor to be had from the hub"
            f"{why and f' ({why})'}. Give the folder that holds {ADAPTER_CONFIG} and "
            f"{ADAPTER_WEIGHTS}."
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
    """The folder of a name that the registry does not know."""
    return Path(name) if not _is_known(str(name)) and Path(name).is_dir() else None


def _is_known(name: str) -> bool:
    return name in MODELS or name in {model.hub_id for model in MODELS.values()}


def _may_be_on_hub(name: str) -> bool:
    return not _is_known(name) and name.count("/") == 1 and not name.startswith((".", "/"))


def _download(
    hub_id: str, revision: str | None, options: Mapping[str, Any]
) -> tuple[Path | None, str]:
    """The small files of a hub repository; None and the reason where they cannot be had.

    Without a revision it is the registry's, for the authors' adapters, else the newest.
    """
    from huggingface_hub import snapshot_download

    try:
        revision = revision or _PINNED.get(hub_id)
        place = snapshot_download(hub_id, revision=revision, allow_patterns=_SMALL_FILES, **options)
        _check_whole(Path(place), hub_id, options.get("cache_dir"))
    except Exception as error:  # whoever loads the weights says what to do
        return None, reason(error)
    return Path(place), ""


def _check_whole(folder: Path, hub_id: str, cache_dir: str | Path | None) -> None:
    """Raise where nothing says whether a snapshot without settings is one of a model without.

    Libraries that fetch single files leave a snapshot that the hub's client returns as it is when
    the hub does not answer.
    """
    from huggingface_hub import get_cached_repo_tree

    commit = commit_of(folder)
    if commit is None or (folder / CONFIG).is_file():
        return
    files = {
        file.path for file in get_cached_repo_tree(hub_id, revision=commit, cache_dir=cache_dir)
    }
    if CONFIG in files:
        raise FileNotFoundError(f"{CONFIG} of {hub_id} is not in the cache")


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
