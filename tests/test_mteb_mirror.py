"""Tasks whose data come from a mirror."""

import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mteb
import pandas as pd
import pytest
from datasets.exceptions import DatasetGenerationError
from tiny_mirror import (
    PAIRS,
    StubEncoder,
    add_status,
    add_task,
)

from llm2vec.errors import DataError
from llm2vec.mteb_tasks import load_task
from llm2vec.registry import get_task
from llm2vec.results import sha256_file

# A draw of so few rows may well be constant.
pytestmark = pytest.mark.filterwarnings("ignore:An input array is constant")


@pytest.fixture(autouse=True)
def root(empty_mirror: Path) -> Path:
    return empty_mirror


# --------------------------------------------------------------------------- mirror
def test_the_source_repeats_the_weakest_status(root: Path) -> None:
    task = get_task("EmotionClassification")
    add_task(root, task)
    assert load_task(task)[1].as_dict() == {
        "id": task.dataset,
        "revision": task.revision,
        "source": "mirror",
        "status": "exact",
    }
    add_status(root, task.dataset, "train.parquet", "substitute")
    assert load_task(task)[1].status == "substitute"
    add_status(root, task.dataset, "test.parquet", "near")
    assert load_task(task)[1].status == "substitute; near"


def test_files_that_the_score_does_not_read_have_no_say(root: Path) -> None:
    task = get_task("STSBenchmark")
    folder = add_task(root, task)
    (folder / "train.parquet").write_bytes(b"not even parquet")
    (folder / "validation.parquet").write_bytes(b"")
    assert load_task(task)[1].status == "exact"


@pytest.mark.parametrize(
    "file", ["corpus/corpus", "queries/queries", "qrels/test", "top_ranked/test"]
)
def test_each_file_of_reranking_has_its_say(root: Path, file: str) -> None:
    task = get_task("SciDocsRR")
    add_task(root, task)
    add_status(root, task.dataset, f"{file}.parquet", "near")
    assert load_task(task)[1].status == "near"


def test_a_subset_is_read_from_its_folder(root: Path, evaluate: Callable[..., Any]) -> None:
    task = get_task("STS17")
    folder = add_task(root, task, "near")
    assert (folder / "en-en" / "test.parquet").is_file()
    assert len(evaluate("STS17", StubEncoder(), ("mean",))) == 1
    assert load_task(task)[1].status == "near"


@pytest.mark.parametrize("name", ["STS17", "EmotionClassification", "SciDocsRR"])
def test_each_file_must_be_the_one_that_the_manifest_lists(root: Path, name: str) -> None:
    """'exact' is a word on certain bytes."""
    task = get_task(name)
    folder = add_task(root, task)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.parquet")}
    rows = {file: f"{task.dataset},{file},exact,{sha256_file(files[file])}\n" for file in files}
    head, manifest = "dataset,file,status,sha256\n", root / "MANIFEST.csv"
    manifest.write_text(head + "".join(rows.values()))
    assert load_task(task)[1].status == "exact"
    for file, path in files.items():
        changed = rows | {file: f"{task.dataset},{file},exact,{'0' * 64}\n"}
        manifest.write_text(head + "".join(changed.values()))
        with pytest.raises(DataError, match=f"{path}: its sha256 is .* lists {'0' * 64}"):
            load_task(task)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("STSBenchmark", "test.parquet"),
        ("STS17", "en-en/test.parquet"),
        ("EmotionClassification", "train.parquet"),
        ("EmotionClassification", "test.parquet"),
        ("SciFact", "corpus/corpus.parquet"),
        ("SciFact", "queries/queries.parquet"),
        ("SciFact", "qrels/test.parquet"),
        ("SciDocsRR", "top_ranked/test.parquet"),
    ],
)
def test_a_missing_file_is_named(root: Path, name: str, file: str) -> None:
    """Without its candidates a reranking task would be scored as retrieval, in silence."""
    path = add_task(root, get_task(name)) / file
    path.unlink()
    with pytest.raises(DataError, match=f"the mirror lacks {path}"):
        load_task(get_task(name))


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [
        ("STSBenchmark", "test.parquet", "score"),
        ("STS17", "en-en/test.parquet", "sentence2"),
        ("EmotionClassification", "train.parquet", "label"),
        ("EmotionClassification", "test.parquet", "text"),
        ("TwentyNewsgroupsClustering", "test.parquet", "labels"),
        ("SprintDuplicateQuestions", "test.parquet", "sent1"),
        ("SprintDuplicateQuestions", "test.parquet", "labels"),
        ("SciFact", "corpus/corpus.parquet", "_id"),
        ("SciFact", "queries/queries.parquet", "text"),
        ("SciFact", "qrels/test.parquet", "corpus-id"),
        ("SciDocsRR", "top_ranked/test.parquet", "corpus-ids"),
    ],
)
def test_a_missing_column_is_named(root: Path, name: str, file: str, column: str) -> None:
    folder = add_task(root, get_task(name))
    path = folder / file
    pd.read_parquet(path).drop(columns=column).to_parquet(path)
    with pytest.raises(DataError) as error:
        load_task(get_task(name))
    assert str(folder) in str(error.value)
    assert column.lstrip("_") in str(error.value)


def test_a_replaced_file_is_served_fresh(root: Path) -> None:
    task = get_task("STSBenchmark")
    file = add_task(root, task) / "test.parquet"
    before = file.stat()
    loaded, _ = load_task(task)
    assert loaded.dataset["test"]["score"][0] == PAIRS[0][2]
    frame = pd.read_parquet(file)
    frame["score"] = frame["score"].to_numpy()[::-1]
    frame.to_parquet(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    loaded, _ = load_task(task)
    assert loaded.dataset["test"]["score"][0] == PAIRS[-1][2]


def test_a_split_that_the_mirror_lacks_is_named(root: Path) -> None:
    task = replace(get_task("STSBenchmark"), split="dev")
    folder = add_task(root, task)
    with pytest.raises(DataError, match=rf"the mirror lacks {folder}/dev\.parquet"):
        load_task(task)


@pytest.mark.parametrize("answer", ["no such task", "another name"])
def test_a_task_that_mteb_has_renamed_is_named(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """mteb follows its own renamings with a warning; a record must not."""
    other = mteb.get_task("STS22.v2")

    def get(*_: Any, **__: Any) -> Any:
        if answer == "no such task":
            raise KeyError("'STS22' not found")
        return other

    monkeypatch.setattr(mteb, "get_task", get)
    with pytest.raises(DataError, match=r"mteb 2\.\d+\.\d+ has no task STS22.*lock\.txt"):
        load_task(get_task("STS22"))


@pytest.mark.parametrize("name", ["STSBenchmark", "CQADupstackRetrieval"])
def test_neither_mirror_nor_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb.abstasks import AbsTask, AbsTaskRetrieval

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    for kind in (AbsTask, AbsTaskRetrieval):
        monkeypatch.setattr(kind, "load_data", offline)
    with pytest.raises(DataError) as error:
        load_task(get_task(name))
    message = str(error.value)
    assert name.removesuffix("Retrieval") in message
    why = "(ConnectionError: no route to host)"
    assert f"neither in a local mirror nor to be had from the hub {why}" in message
    assert "LLM2VEC_DATA" in message


@pytest.mark.parametrize("candidates", [None, {}])
def test_reranking_without_candidates_is_refused(
    monkeypatch: pytest.MonkeyPatch, candidates: object
) -> None:
    from mteb.abstasks import AbsTaskRetrieval

    def load_data(self: AbsTaskRetrieval, **_: Any) -> None:
        self.dataset = {"default": {"test": {"corpus": [], "top_ranked": candidates}}}

    monkeypatch.setattr(AbsTaskRetrieval, "load_data", load_data)
    with pytest.raises(DataError, match=r"mteb/SciDocsRR .*came without the candidates"):
        load_task(get_task("SciDocsRR"))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(errno.ENOSPC, "No space left on device"), TypeError("a mistake"),
     DatasetGenerationError("while generating")],
)  # fmt: skip
def test_what_says_nothing_of_the_data_is_not_taken_for_their_absence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A run that goes on without absent data would leave the task out and end well."""
    from mteb.abstasks import AbsTask

    def load_data(*_: Any, **__: Any) -> None:
        raise error from error.__cause__

    if isinstance(error, DatasetGenerationError):
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(AbsTask, "load_data", load_data)
    with pytest.raises(type(error)):
        load_task(get_task("STSBenchmark"))


def test_data_from_the_hub_are_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb.abstasks import AbsTask

    loaded = []

    def load_data(self: AbsTask, **_: Any) -> None:
        loaded.append(self.metadata.name)
        self.dataset = {"test": [], "validation": []}

    monkeypatch.setattr(AbsTask, "load_data", load_data)
    task = get_task("STSBenchmark")
    assert load_task(task)[1].as_dict() == {
        "id": task.dataset,
        "revision": task.revision,
        "source": "hub",
        "status": "exact",
    }
    assert loaded == ["STSBenchmark"]
    with pytest.raises(DataError, match=r"no split 'dev'; it has test, validation"):
        load_task(replace(task, split="dev"))


def test_warnings_work_again_afterwards(root: Path, evaluate: Callable[..., Any]) -> None:
    add_task(root, get_task("STSBenchmark"))
    evaluate("STSBenchmark", StubEncoder(), ("mean",))
    with pytest.warns(UserWarning, match="still here"):
        warnings.warn("still here", UserWarning, stacklevel=1)
