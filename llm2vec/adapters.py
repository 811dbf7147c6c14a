"""Where adapters lie, and what a record calls them; loads no weights, so no torch.

Own adapters are looked for in ``$LLM2VEC_CHECKPOINTS``, then among those that the repository
ships. The authors' (``published``) come from the hub at the registry's revisions, as safetensors.
"""

from __future__ import annotations

from pathlib import Path

from llm2vec import paths
from llm2vec.errors import AdapterError
from llm2vec.registry import MODELS, UNPINNED, Model, Variant
from llm2vec.results import sha256_file

ADAPTER_WEIGHTS = "adapter_model.safetensors"
WORDS_STAGE = "mntp-words"  # an MNTP adapter for the word-level tasks alone (Mistral; paper D.1.3)


# --------------------------------------------------------------------------- own
def adapter_folder(model: Model, stage: str) -> Path:
    """Folder of an own adapter: ``$LLM2VEC_CHECKPOINTS`` first, then what the repository ships.

    ``stage``: mntp, mntp-words, mntp-simcse, uni-simcse or bi-simcse. Raises
    :class:`AdapterError` naming the command that trains it.
    """
    folders = [root / model.name / stage for root in _adapter_roots()]
    for folder in folders:
        if (folder / ADAPTER_WEIGHTS).is_file():
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
    return [adapter_folder(model, stage) for stage in stages_of(variant)]


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
            raise AdapterError(f"cannot download {hub_id} ({type(error).__name__})") from error
        folders.append(Path(folder))
    return folders


def adapter_hashes(model: Model, variant: Variant, source: str = "own") -> tuple[str, ...]:
    """What a record of this variant calls its adapters; ``source``: own or published."""
    find = published_adapters if source == "published" else adapter_folders
    return tuple(adapter_hash(folder) for folder in find(model, variant))
