"""A dataset by its hub id: local mirror, else the hub at one commit; says which it used.

The mirror (``LLM2VEC_DATA``) is a folder of parquet laid out by hub id, ``MANIFEST.csv`` beside it
giving the status of every file (``exact``, ``reconstructed``, ``substitute``, ...) and, where it
has a column for it, the sha256 that the file must have: a status is of these bytes. Parquet files
are read directly: the cache of the ``datasets`` library would go on serving an old copy of a file
that was replaced in place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from llm2vec import paths
from llm2vec.errors import DataError
from llm2vec.hub import asked_revision_only, is_missing, reason
from llm2vec.registry import UNPINNED
from llm2vec.registry_datasets import HUB_REVISIONS, MIRROR_NAMES
from llm2vec.results import sha256_file


@dataclass(frozen=True)
class Source:
    """Where a dataset came from: mirror, hub or asset; ``status`` as in the manifest."""

    id: str
    revision: str
    source: str
    status: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def mirror_status(root: Path, file: Path) -> str:
    """Status of a mirror file by the manifest, 'unverified' where that says nothing."""
    return _manifest_row(root, file).get("status", "unverified")


def _manifest_row(root: Path, file: Path) -> dict[str, str]:
    """What the manifest says of a file; empty where there is no manifest or it says nothing."""
    manifest = root / "MANIFEST.csv"
    if not manifest.exists():
        return {}
    try:
        table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
        paths_ = table["dataset"] + "/" + table["file"]
        rows = table[paths_ == file.relative_to(root).as_posix()]
        table["status"]  # a manifest has this column
    except (KeyError, ValueError) as error:  # ValueError: empty, ragged, not UTF-8
        raise DataError(f"{manifest}: not a readable manifest ({error})") from error
    return rows.iloc[0].to_dict() if len(rows) else {}


def mirror_folder(dataset_id: str) -> Path | None:
    """Folder of a dataset in the mirror, or None when the mirror does not have it."""
    root = paths.mirror_dir()
    if root is None:
        return None
    if not root.is_dir():
        raise DataError(
            f"LLM2VEC_DATA names {root}, which is not a folder. Point it to a mirror of parquet "
            "files laid out by hub id, or unset it to use the hub."
        )
    folder = root / MIRROR_NAMES.get(dataset_id, dataset_id)
    return folder if folder.is_dir() else None


def _check_digest(file: Path) -> None:
    """:class:`DataError` for a mirror's file that is not the one of the manifest's sha256."""
    root = paths.mirror_dir()
    if root is None or not file.is_relative_to(root):
        return
    listed = _manifest_row(root, file).get("sha256", "").strip().lower()
    if not listed:
        return
    state = file.stat()
    found = _digest(file, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if found != listed:
        raise DataError(
            f"{file}: its sha256 is {found}, {root / 'MANIFEST.csv'} lists {listed}. Fetch or "
            "build the file again; where the change is meant, correct its row, the status included."
        )


@functools.cache
def _digest(file: Path, *_state: int) -> str:
    """sha256 of a file, once per process as long as the file is left alone."""
    return sha256_file(file)


def read_parquet(file: Path, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """One parquet file; :class:`DataError` names the file and what is wrong with it.

    A mirror's file whose manifest has a sha256 must have that.
    """
    try:
        _check_digest(file)
        table = pd.read_parquet(file)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file}: not a readable parquet file ({error})") from error
    require_columns(table.columns, columns, str(file))
    return table


def require_columns(present: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """:class:`DataError` naming ``where`` and the columns that it lacks."""
    present = list(map(str, present))
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(f"{where}: lacks column {', '.join(missing)}; it has {', '.join(present)}")


def load_split(
    dataset_id: str, split: str, subset: str = "default", columns: tuple[str, ...] = ()
) -> tuple[pd.DataFrame, Source]:
    """One split of a dataset as a table, and where it came from.

    Raises :class:`DataError` when neither mirror nor hub has it, naming the ways to provide it;
    what says nothing of the data (a full disk, say) as it is.
    """
    folder = mirror_folder(dataset_id)
    if folder is not None:
        root = paths.mirror_dir()
        names = (f"{split}.parquet",) if subset == "default" else (f"{subset}/{split}.parquet",)
        for file in (folder / name for name in names):
            if file.exists():
                source = Source(dataset_id, "mirror", "mirror", mirror_status(root, file))
                return read_parquet(file, columns), source
    table, source = _from_hub(dataset_id, split, subset)
    require_columns(table.columns, columns, f"{dataset_id} ({subset}, {split})")
    return table, source


def hub_revision(dataset_id: str) -> str:
    """The commit that the registry's revision of a dataset means now.

    A branch's name or 'unpinned' is given back as it is where the hub does not answer.
    """
    revision = HUB_REVISIONS.get(dataset_id, UNPINNED)
    if len(revision) == 40:
        return revision
    from huggingface_hub import HfApi

    try:
        named = None if revision == UNPINNED else revision
        return HfApi().dataset_info(dataset_id, revision=named, timeout=30).sha or revision
    except Exception:
        return revision  # whoever loads it is told why the hub does not answer


def _from_hub(dataset_id: str, split: str, subset: str) -> tuple[pd.DataFrame, Source]:
    revision = hub_revision(dataset_id)
    try:
        from datasets import load_dataset

        with asked_revision_only():
            loaded = load_dataset(
                dataset_id,
                None if subset == "default" else subset,
                split=split,
                revision=None if revision == UNPINNED else revision,
            )
    except Exception as error:
        if not is_missing(error):
            raise
        raise DataError(
            f"the dataset {dataset_id} ({subset}, {split}) is neither in a local mirror nor to be "
            f"had from the hub ({reason(error)}). Set LLM2VEC_DATA to a mirror that has it, or run "
            "where the hub can be reached."
        ) from error
    return loaded.to_pandas(), Source(dataset_id, revision, "hub", "exact")
