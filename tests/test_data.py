"""A dataset by its id: the mirror before the hub, the status repeated, what is wrong named."""

import csv
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from llm2vec import data, registry, registry_datasets
from llm2vec.data import Source, load_split, mirror_folder, read_parquet
from llm2vec.errors import DataError
from llm2vec.results import sha256_file

ID = "some-owner/some-data"
TABLE = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror of one dataset: two splits, and a subset of its own."""
    folder = tmp_path / "mirror"
    for file in ("test.parquet", "train.parquet", "en/test.parquet"):
        path = folder / ID / file
        path.parent.mkdir(parents=True, exist_ok=True)
        TABLE.to_parquet(path)
    write_manifest(folder, {"test.parquet": "exact", "en/test.parquet": "exact, reordered"})
    monkeypatch.setenv("LLM2VEC_DATA", str(folder))
    return folder


def write_manifest(root: Path, statuses: dict[str, str]) -> None:
    with open(root / "MANIFEST.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["dataset", "file", "status"])
        writer.writerows([ID, file, status] for file, status in statuses.items())


class Hub:
    """Stands in for the hub: serves one table, or fails, and notes what it was asked for."""

    def __init__(self, answer: pd.DataFrame | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any, split: str, revision: str | None) -> Any:
        from datasets import Dataset

        self.asked.append((*arguments, split, revision))
        if isinstance(self.answer, Exception):
            raise self.answer
        return Dataset.from_pandas(self.answer)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[pd.DataFrame | Exception], Hub]:
    def install(answer: pd.DataFrame | Exception) -> Hub:
        stand_in = Hub(answer)
        monkeypatch.setattr("datasets.load_dataset", stand_in)
        return stand_in

    return install


def never(*_: object, **__: object) -> None:
    raise AssertionError("the hub should not be asked")


# --------------------------------------------------------------------------- order
def test_the_mirror_comes_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_from_hub", never)
    table, source = load_split(ID, "test")
    pd.testing.assert_frame_equal(table, TABLE)
    assert source == Source(ID, "mirror", "mirror", "exact")
    assert source.as_dict() == {
        "id": ID, "revision": "mirror", "source": "mirror", "status": "exact",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "split", "subset"),
    [("other/data", "test", "default"), (ID, "validation", "default"), (ID, "train", "en")],
)
def test_the_hub_serves_what_the_mirror_lacks(
    root: Path, hub: Callable[..., Hub], dataset: str, split: str, subset: str
) -> None:
    asked = hub(TABLE).asked
    table, source = load_split(dataset, split, subset)
    assert list(table["text"]) == ["a", "b"]
    assert source == Source(dataset, "unpinned", "hub", "exact")
    assert asked == [(dataset, None if subset == "default" else subset, split, None)]


def test_the_hub_is_asked_for_the_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, hub: Callable[..., Hub]
) -> None:
    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    monkeypatch.setattr(data, "HUB_REVISIONS", {ID: "f" * 40})
    asked = hub(TABLE).asked
    assert load_split(ID, "test")[1].revision == "f" * 40
    assert asked == [(ID, None, "test", "f" * 40)]


@pytest.mark.parametrize("named", [registry.UNPINNED, "refs/convert/parquet"])
def test_a_branch_is_resolved_to_the_commit_that_it_means(
    monkeypatch: pytest.MonkeyPatch, hub: Callable[..., Hub], named: str
) -> None:
    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    monkeypatch.setattr(data, "HUB_REVISIONS", {ID: named})
    asked = hub(TABLE).asked
    # Where the hub does not say, the name has to do.
    assert load_split(ID, "test")[1].revision == named
    answers = []

    def info(_self: object, dataset: str, *, revision: str | None, **_: object) -> Any:
        answers.append((dataset, revision))
        return SimpleNamespace(sha="a" * 40)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    assert load_split(ID, "test")[1].revision == "a" * 40
    wanted = None if named == registry.UNPINNED else named
    assert answers == [(ID, wanted)]
    assert [revision for *_, revision in asked] == [wanted, "a" * 40]


def test_a_mirror_may_use_another_name(root: Path) -> None:
    for dataset_id, name in registry_datasets.MIRROR_NAMES.items():
        assert mirror_folder(dataset_id) is None
        (root / name).mkdir(parents=True)
        assert mirror_folder(dataset_id) == root / name


def test_a_subset_is_a_folder(root: Path) -> None:
    pd.DataFrame({"text": ["c"], "label": [0]}).to_parquet(root / ID / "en" / "test.parquet")
    assert list(load_split(ID, "test", "en")[0]["text"]) == ["c"]
    assert list(load_split(ID, "test")[0]["text"]) == ["a", "b"]


# --------------------------------------------------------------------------- status
def test_the_status_of_the_manifest_is_repeated(root: Path) -> None:
    assert load_split(ID, "test", "en")[1].status == "exact, reordered"
    write_manifest(root, {"test.parquet": "substitute"})
    assert load_split(ID, "test")[1].status == "substitute"


def test_what_no_manifest_lists_is_unverified(root: Path) -> None:
    assert load_split(ID, "train")[1].status == "unverified"
    (root / "MANIFEST.csv").unlink()
    assert load_split(ID, "test")[1].status == "unverified"


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b'dataset,file,status\n"unclosed']
)
def test_a_broken_manifest_is_named(root: Path, content: bytes) -> None:
    manifest = root / "MANIFEST.csv"
    manifest.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{manifest}: not a readable manifest")):
        load_split(ID, "test")


def test_the_statuses_of_the_real_mirror_are_found(mirror_env: Path) -> None:
    with open(mirror_env / "MANIFEST.csv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["file"].endswith(".parquet")]
    for row in rows:
        file = mirror_env / row["dataset"] / row["file"]
        assert data.mirror_status(mirror_env, file) == row["status"]


# --------------------------------------------------------------------------- sha256
@pytest.fixture
def listed(root: Path) -> Path:
    """A file of the mirror whose sha256 the manifest lists."""
    file = root / ID / "test.parquet"
    TABLE.assign(text=["spoken", "b"]).to_parquet(file, compression="none")
    write_digest(root, sha256_file(file))
    return file


def write_digest(root: Path, digest: str) -> None:
    (root / "MANIFEST.csv").write_text(
        f"dataset,file,status,sha256\n{ID},test.parquet,exact,{digest}\n{ID},train.parquet,exact,\n"
    )


def test_a_file_that_is_not_the_listed_one_is_named(root: Path, listed: Path) -> None:
    table, source = load_split(ID, "test")
    assert (table["text"][0], source.status) == ("spoken", "exact")
    before, content = sha256_file(listed), listed.read_bytes()
    listed.write_bytes(content.replace(b"spoken", b"rpoken", 1))
    assert pd.read_parquet(listed)["text"][0] == "rpoken"
    with pytest.raises(DataError) as error:
        load_split(ID, "test")
    for part in (str(listed), before, sha256_file(listed), str(root / "MANIFEST.csv")):
        assert part in str(error.value)
    listed.write_bytes(content)
    assert load_split(ID, "test")[0]["text"][0] == "spoken"


@pytest.mark.parametrize("digest", ["", " ", "upper case"])
def test_what_has_no_listed_digest_is_read_as_it_is(root: Path, listed: Path, digest: str) -> None:
    write_digest(root, sha256_file(listed).upper() if digest == "upper case" else digest)
    assert load_split(ID, "test")[0]["text"][0] == "spoken"
    assert load_split(ID, "train")[1].status == "exact"  # a row without a digest


def test_a_file_is_hashed_once(root: Path, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def counting(file: Path) -> str:
        hashed.append(file)
        return sha256_file(file)

    monkeypatch.setattr(data, "sha256_file", counting)
    for _ in range(3):
        load_split(ID, "test")
    assert hashed == [listed]


def test_a_listed_file_that_cannot_be_read_is_named(root: Path, listed: Path) -> None:
    listed.unlink()
    with pytest.raises(DataError, match=re.escape(f"{listed}: not a readable parquet file")):
        read_parquet(listed)


def test_the_files_of_the_real_mirror_are_the_listed_ones(mirror_env: Path) -> None:
    files = sorted(mirror_env.rglob("*.parquet"))
    assert files
    for file in files:
        assert len(read_parquet(file)) > 0


# --------------------------------------------------------------------------- errors
def test_a_mirror_that_is_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable[..., Hub]
) -> None:
    """It must not be passed over in silence: the user meant the mirror, not the hub."""
    hub(TABLE)
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"LLM2VEC_DATA names .*nowhere.*unset it"):
        load_split(ID, "test")


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), TimeoutError()])
def test_neither_mirror_nor_hub(root: Path, hub: Callable[..., Hub], error: Exception) -> None:
    hub(error)
    with pytest.raises(DataError) as raised:
        load_split("other/data", "test", "en")
    message = str(raised.value)
    assert "other/data (en, test)" in message
    assert type(error).__name__ in message
    assert "LLM2VEC_DATA" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EDQUOT, "Disk quota exceeded"), KeyError("a mistake")]
)
def test_what_says_nothing_of_the_data_is_passed_on(
    root: Path, hub: Callable[..., Hub], error: Exception
) -> None:
    """Or training would go on with other text because a disk is full."""
    hub(error)
    with pytest.raises(type(error)):
        load_split("other/data", "test")


def test_a_missing_column_is_named(root: Path, hub: Callable[..., Hub]) -> None:
    file = root / ID / "test.parquet"
    with pytest.raises(DataError) as error:
        load_split(ID, "test", columns=("text", "score", "id"))
    assert str(error.value) == f"{file}: lacks column score, id; it has text, label"
    hub(TABLE)
    with pytest.raises(DataError, match=r"other/data \(default, test\): lacks column score"):
        load_split("other/data", "test", columns=("text", "score"))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet", None])
def test_an_unreadable_file_is_named(root: Path, content: bytes | None) -> None:
    file = root / ID / "test.parquet"
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    with pytest.raises(DataError, match=re.escape(f"{file}: not a readable parquet file")):
        read_parquet(file)


# --------------------------------------------------------------------------- freshness
def test_a_file_replaced_in_place_is_served_fresh(root: Path) -> None:
    """Same name, same size, same modification time: the datasets library would serve the old."""
    file = root / ID / "test.parquet"
    assert list(load_split(ID, "test")[0]["text"]) == ["a", "b"]
    before = file.stat()
    replaced = TABLE.assign(text=["c", "d"])
    replaced.to_parquet(file)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(load_split(ID, "test")[0]["text"]) == ["c", "d"]


def test_another_mirror_is_another_mirror(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_split(ID, "test")
    other = tmp_path / "other"
    shutil.copytree(root, other)
    TABLE.assign(text=["c", "d"]).to_parquet(other / ID / "test.parquet")
    write_manifest(other, {"test.parquet": "substitute"})
    monkeypatch.setenv("LLM2VEC_DATA", str(other))
    table, source = load_split(ID, "test")
    assert list(table["text"]) == ["c", "d"]
    assert source.status == "substitute"
