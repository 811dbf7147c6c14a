"""Where adapters lie, and what a record calls them; loads no weights, so no torch.

Own adapters are looked for in ``$LLM2VEC_CHECKPOINTS``, then among those that the repository
ships; the note that a run leaves beside its adapter says what it fits. The authors'
(``published``) come from the hub at the registry's revisions, as safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2vec import paths
from llm2vec.errors import AdapterError
from llm2vec.hub import reason
from llm2vec.registry import MODELS, UNPINNED, Model, Variant
from llm2vec.results import sha256_file

ADAPTER_WEIGHTS = "adapter_model.safetensors"
WORDS_STAGE = "mntp-words"  # an MNTP adapter for the word-level tasks alone (Mistral; paper D.1.3)


# --------------------------------------------------------------------------- own
def adapter_folder(model: Model, stage: str) -> Path:
    """Folder of an own adapter: ``$LLM2VEC_CHECKPOINTS`` first, then what the repository ships.

    ``stage``: mntp, mntp-words, mntp-simcse, uni-simcse or bi-simcse. Raises
    :class:`AdapterError` naming the command that trains it, or what is wrong with the one there.
    """
    folders = [root / model.name / stage for root in _adapter_roots()]
    for folder in folders:
        if (folder / ADAPTER_WEIGHTS).is_file():
            check_origin(folder, model.name, stage)
            return folder
    published = " or, with ADAPTERS=published, use the authors'" if model.published else ""
    raise AdapterError(
        f"no adapter '{stage}' for {model.name}. Train it with "
        f"'python {' '.join(training_command(model, stage))}'{published}."
    )


def training_command(model: Model, stage: str) -> tuple[str, ...]:
    """Arguments of the interpreter that train a stage."""
    script = "01_train_mntp" if stage in ("mntp", WORDS_STAGE) else "02_train_simcse"
    variant = {"mntp-simcse": "bi-mntp-simcse"}.get(stage, stage)
    more = {"mntp": (), WORDS_STAGE: ("--words",)}.get(stage, ("--variant", variant))
    return (f"experiments/{script}.py", "--model", model.name, *more)


def note_of(folder: Path) -> dict[str, Any]:
    """What the run that made an adapter wrote down; empty where there is no such note."""
    file = folder / "provenance.json"
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file}: not a JSON object ({error})") from error
    if not isinstance(note, dict):
        raise AdapterError(f"{file}: not a JSON object")
    return note


def check_origin(folder: Path, model_name: str = "", stage: str = "") -> None:
    """Refuse an adapter whose note names another model or stage (empty: any)."""
    note = note_of(folder)
    trained_for, found = note.get("model", model_name), note.get("stage", stage)
    if model_name and trained_for != model_name:
        raise AdapterError(f"{folder}: trained for {trained_for}, not for {model_name}")
    if stage and found != stage:
        raise AdapterError(f"{folder}: an adapter of stage {found!r}, not {stage!r}")


def _adapter_roots() -> tuple[Path, Path]:
    return paths.checkpoints_dir(), paths.shipped_adapters_dir()


def stages_of(variant: Variant) -> tuple[str, ...]:
    """Stages whose adapters make a variant, in the order in which they are merged."""
    if variant.adapter is None:
        return ()
    first = ("mntp",) if "mntp" in variant.stages else ()
    return first if variant.adapter in first else (*first, variant.adapter)


def adapter_folders(model: Model, variant: Variant) -> list[Path]:
    """Folders of a variant's adapters, in the order in which they are merged."""
    return folders_of(model, stages_of(variant))


def folders_of(model: Model, stages: Sequence[str]) -> list[Path]:
    """Folders of the adapters of stages that are merged in this order.

    Raises :class:`AdapterError` where one is missing, or was trained on top of another one than
    that which comes before it here.
    """
    folders = [adapter_folder(model, stage) for stage in stages]
    for number, folder in enumerate(folders):
        below = note_of(folder).get("merged_before")
        if below is not None and below != [adapter_hash(f) for f in folders[:number]]:
            command = " ".join(training_command(model, stages[number]))
            raise AdapterError(
                f"{folder}: trained on top of another adapter than the one in "
                f"{' and '.join(map(str, folders[:number])) or 'no folder'}. Move it away and "
                f"train it again with 'python {command}', or put the older one back."
            )
    return folders


def has_adapters(model: Model, variant: Variant) -> bool:
    """Whether every stage of the variant has an own adapter at hand."""
    try:
        adapter_folders(model, variant)
    except AdapterError:
        return False
    return True


def adapter_hash(folder: Path) -> str:
    """sha256 of an adapter's weights: what a record calls the adapter."""
    return sha256_file(folder / ADAPTER_WEIGHTS)


# --------------------------------------------------------------------------- the authors'
def is_published(model: Model, variant: Variant) -> bool:
    """Whether the authors published every adapter of a variant (one without needs none)."""
    return all(stage in model.published for stage in stages_of(variant))


def published_adapters(model: Model, variant: Variant, *, local_only: bool = False) -> list[Path]:
    """Local copies of the authors' adapters for a variant, downloaded from the hub if needed.

    Raises :class:`AdapterError` where there are none, or where they cannot be had; with
    ``local_only`` nothing is downloaded.
    """
    from huggingface_hub import snapshot_download

    if not is_published(model, variant):
        raise AdapterError(
            f"there are no published adapters for {model.name} {variant.name}; "
            "published are bi-mntp and bi-mntp-simcse of "
            f"{', '.join(m.name for m in MODELS.values() if m.published)}"
        )
    folders = []
    for stage in stages_of(variant):
        hub_id, revision = model.published[stage]
        local = Path(hub_id)
        if local.is_dir():
            folders.append(local)
            continue
        try:
            folder = snapshot_download(
                hub_id,
                revision=None if revision == UNPINNED else revision,
                allow_patterns=["adapter_config.json", ADAPTER_WEIGHTS],
                local_files_only=local_only,
            )
        except Exception as error:
            raise AdapterError(f"cannot download {hub_id} ({reason(error)})") from error
        folders.append(Path(folder))
    return folders


def adapter_hashes(model: Model, variant: Variant, source: str = "own") -> tuple[str, ...]:
    """What a record of this variant calls its adapters; ``source``: own or published."""
    find = published_adapters if source == "published" else adapter_folders
    return tuple(adapter_hash(folder) for folder in find(model, variant))
