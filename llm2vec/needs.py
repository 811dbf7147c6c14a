"""What a run needs, and for each thing whether it is here or could be downloaded.

Looks at the mirror (``LLM2VEC_DATA``), the hub's cache, the embedded assets and the adapters, and
asks hub and PyPI only whether they answer. Imports no torch; used by :mod:`llm2vec.doctor`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from llm2vec import assets, estimates, paths
from llm2vec.adapters import ADAPTER_WEIGHTS, adapter_folder, stages_of
from llm2vec.corpora import SENTENCES_FILE
from llm2vec.data import Source, mirror_folder, mirror_status
from llm2vec.errors import AdapterError, DataError
from llm2vec.mirror import Wanted, wanted_by
from llm2vec.registry import MODELS, UNPINNED, Model, Task, Variant
from llm2vec.registry_datasets import CONLL, HUB_REVISIONS, SENTENCES, WIKITEXT
from llm2vec.training_text import is_the_papers

State = Literal["present", "download", "missing"]


@dataclass(frozen=True)
class Item:
    """One thing that a run needs; ``note``: where it is, or what to do."""

    kind: str
    name: str
    state: State
    note: str


def size_text(size: float) -> str:
    """Bytes for a reader: ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# --------------------------------------------------------------------------- can it be had
@cache
def hub_answers() -> bool:
    """Whether the hub can be reached now (not asked when offline by choice)."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:
        return False
    return True


@cache
def pypi_has(package: str) -> bool:
    """Whether pip finds a package where this machine's pip looks."""
    command = [sys.executable, "-m", "pip", "index", "versions", package.split("==")[0]]
    try:
        done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _from_the_hub(kind: str, name: str, size: float = 0) -> Item:
    about = f", about {size_text(size)}" if size else ""
    if hub_answers():
        return Item(kind, name, "download", f"from the hub{about}")
    return Item(kind, name, "missing", "not here, and the hub does not answer")


def in_hub_cache(hub_id: str, revision: str, repo_type: str, pattern: str) -> Path | None:
    """Snapshot of a repository in the hub's cache that has a file of that pattern."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    base = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type=repo_type)
    if revision == UNPINNED:
        ref = base / "refs" / "main"
        revision = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    folder = base / "snapshots" / revision
    return folder if any(folder.rglob(pattern)) else None


def _absent_shards(folder: Path) -> list[str]:
    """Files that a snapshot's index of weights names and that are not there."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:  # a model of one file
        return []
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return ["a readable model.safetensors.index.json"]
    return [name for name in files if not (folder / str(name)).is_file()]


# --------------------------------------------------------------------------- what a run needs
def check_model(model: Model) -> Item:
    """The backbone: embedded, in the hub's cache, or to be downloaded."""
    if model.asset is not None:
        digest = assets.model_revision(model.asset).rsplit(":", 1)[-1]
        folder = paths.cache_dir() / "models" / f"{model.asset}-{digest}"
        if folder.is_dir():
            return Item("model", model.name, "present", "embedded model, in the cache")
        names = [n for n in assets.ASSETS if n.startswith(model.asset)]
        worst = [item for item in map(check_asset, names) if item.state != "present"]
        if not worst:
            return Item("model", model.name, "present", "its wheel's files are in the cache")
        return Item("model", model.name, worst[0].state, worst[0].note)
    where = in_hub_cache(model.hub_id, model.revision, "model", "*.safetensors")
    absent = _absent_shards(where) if where else []
    if where is not None and not absent:
        return Item("model", model.name, "present", "in the hub's cache")
    from huggingface_hub import get_token

    if model.gated and hub_answers() and not get_token():
        return Item(
            "model", model.name, "missing",
            f"{model.hub_id} is gated: accept its licence on the hub, then set HF_TOKEN",
        )  # fmt: skip
    if absent and not hub_answers():
        note = f"the hub's cache lacks {', '.join(absent)}, and the hub does not answer"
        return Item("model", model.name, "missing", note)
    return _from_the_hub("model", model.name, 2 * model.parameters)


def check_asset(name: str) -> Item:
    """One file of a wheel."""
    asset = assets.ASSETS[name]
    if (paths.cache_dir() / "assets" / asset.sha256[:16] / asset.filename).is_file():
        return Item("asset", name, "present", "in the cache")
    wheel = asset.package.replace("-", "_").replace("==", "-")
    if any((paths.cache_dir() / "wheels").glob(f"{wheel}-*.whl")):
        return Item("asset", name, "present", "its wheel was put into the cache")
    if pypi_has(asset.package):
        return Item("asset", name, "download", f"{asset.package} from PyPI")
    return Item(
        "asset", name, "missing", f"{asset.package}: pip does not find it here; see 'make assets'"
    )


def check_adapters(model: Model, variant: Variant, source: str) -> Iterator[Item]:
    """Every stage's adapter, own or published."""
    for stage in stages_of(variant):
        name = f"{model.name}/{stage}"
        if source == "published" and stage in model.published:
            hub_id, revision = model.published[stage]
            local = Path(hub_id).is_dir()
            if local or in_hub_cache(hub_id, revision, "model", ADAPTER_WEIGHTS):
                yield Item("adapter", name, "present", "published, here")
            else:
                yield _from_the_hub("adapter", name)
        elif source == "published":
            known = ", ".join(model.published) or "none"
            yield Item("adapter", name, "missing", f"not published; published are: {known}")
        else:
            try:
                adapter_folder(model, stage)
                yield Item("adapter", name, "present", "trained here or shipped")
            except AdapterError as error:
                yield Item("adapter", name, "missing", str(error))


def check_corpora() -> Iterator[Item]:
    """The corpora that the embedded suite is built from."""
    models = {model.asset for model in MODELS.values() if model.asset}
    for name in assets.ASSETS:
        if not any(name.startswith(model) for model in models):
            yield check_asset(name)


def check_training_text() -> Iterator[Item]:
    """The corpora of MNTP, of SimCSE and of the word probes: in the mirror, else from the hub."""
    splits = {CONLL: ("train", "validation", "test")}
    for dataset in (WIKITEXT, SENTENCES, CONLL):
        try:
            found = _marks(dataset, splits.get(dataset, ("train",)))
            if found:
                yield Item("text", dataset, "present", f"mirror: {found}")
            elif dataset == SENTENCES and in_hub_cache(
                dataset, HUB_REVISIONS[dataset], "dataset", SENTENCES_FILE
            ):  # one file, which is read from the cache alone
                yield Item("text", dataset, "present", "in the hub's cache")
            else:
                yield _from_the_hub("text", dataset)
        except DataError as error:
            yield Item("text", dataset, "missing", str(error))


def _marks(dataset: str, splits: Sequence[str]) -> str:
    """Status of a corpus in the mirror; nothing where it has none, or another in its place."""
    folder, root = mirror_folder(dataset), paths.mirror_dir()
    if folder is None or root is None:
        return ""
    files = [folder / f"{split}.parquet" for split in splits]
    if not all(file.is_file() for file in files):
        return ""
    status = "; ".join(sorted({mirror_status(root, file) for file in files}))
    if dataset == CONLL:  # marked data are used for probes, and the records say so
        return status
    exact = status == "exact" or dataset != SENTENCES  # as corpora reads the sentences
    return status if exact and is_the_papers(Source(dataset, "", "mirror", status)) else ""


def check_data(task: Task) -> Iterator[Item]:
    """The datasets of a task: the mirror first, as a run does, then the hub."""
    by_dataset: dict[str, list[Wanted]] = {}
    for want in wanted_by(task):
        by_dataset.setdefault(want.dataset, []).append(want)
    size = estimates.task_sizes().get(task.name, (0, 0, 0))[1] / len(by_dataset)
    for dataset, files in by_dataset.items():
        try:
            folder = mirror_folder(dataset)
            if folder is not None:
                yield _in_mirror(dataset, folder, files)
            elif in_hub_cache(dataset, files[0].revision, "dataset", "*.[jpc]*"):
                yield _in_hub_cache(dataset)
            else:
                yield _from_the_hub("dataset", dataset, size)
        except DataError as error:
            yield Item("dataset", dataset, "missing", str(error))


def check_disk(needed: float) -> Iterator[Item]:
    """Room for the vectors of a task where they wait to be scored; nothing where none are."""
    if not needed:
        return
    folder = paths.cache_dir()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    note = f"{size_text(free)} free, about {size_text(needed)} for the vectors of the largest task"
    if free >= needed:
        yield Item("disk", str(folder), "present", note)
    else:
        note += ": free space or set LLM2VEC_CACHE to another folder"
        yield Item("disk", str(folder), "missing", note)


def _in_hub_cache(dataset: str) -> Item:
    """``datasets`` asks the hub what a dataset consists of: without it a cache serves nothing."""
    if hub_answers():
        return Item("dataset", dataset, "present", "in the hub's cache")
    note = "in the hub's cache, which serves no one while the hub does not answer: make mirror"
    return Item("dataset", dataset, "missing", note)


def _in_mirror(dataset: str, folder: Path, files: list[Wanted]) -> Item:
    absent = [want.file for want in files if not (folder / want.file).is_file()]
    if absent:
        note = f"the mirror lacks {', '.join(absent)}: complete it (make mirror)"
        return Item("dataset", dataset, "missing", note)
    root = paths.mirror_dir()
    marks = {mirror_status(root, folder / want.file) for want in files} if root else set()
    return Item("dataset", dataset, "present", f"mirror: {'; '.join(sorted(marks))}")
