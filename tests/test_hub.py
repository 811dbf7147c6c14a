"""What the hub does not give: never another revision instead, and words that say what to do."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.load import CachedDatasetModuleFactory
from fake_hub import REFUSALS, FakeHub, cached_copy, refuse_everything, repository, sts
from huggingface_hub import errors

from llm2vec import data, mirror
from llm2vec.errors import DataError
from llm2vec.hub import HubError, UnreachableError, asked_revision_only, explain, is_hopeless
from llm2vec.manifest import Manifest
from llm2vec.mteb_tasks import load_task
from llm2vec.registry import get_task

STS = get_task("STSBenchmark")


# --------------------------------------------------------------------------- the asked revision
@pytest.fixture
def old_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cache of ``datasets`` lie rows of some revision of STSBenchmark."""
    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cached_copy(tmp_path / "cache", STS.dataset, {"default": {"test": sts()}})


def read(tmp_path: Path) -> Any:
    data.load_split(STS.dataset, "test")


def mirrored(tmp_path: Path) -> Any:
    (want,) = mirror.wanted_by(STS)
    mirror.fetch(tmp_path, Manifest(tmp_path), want)


def evaluated(tmp_path: Path) -> Any:
    load_task(STS)


@pytest.mark.parametrize("load", [read, mirrored, evaluated])
@pytest.mark.parametrize("kind", ["by choice", "no route", "busy", "too many questions"])
def test_a_copy_of_another_revision_is_not_taken_for_the_pinned_one(
    old_copy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable, kind: str
) -> None:
    if kind != "by choice":  # tests are offline by choice
        refuse_everything(monkeypatch, REFUSALS[kind])
    found = datasets.load_dataset(STS.dataset, split="test", revision=STS.revision)
    assert found.to_list() == sts(), "what datasets gives for a revision that it does not have"
    with pytest.raises((DataError, HubError)) as error:
        load(tmp_path)
    said = str(error.value)
    says = {"by choice": "reach", "no route": "reach", "busy": "503", "too many questions": "429"}
    assert says[kind] in said and "\n" not in said
    if isinstance(error.value, DataError):  # all that is known
        assert "may be of another revision" in said
        assert str(REFUSALS["no route"]) in said or kind != "no route"
    assert list(tmp_path.rglob("*.parquet")) == []
    # Outside nothing is changed.
    assert len(datasets.load_dataset(STS.dataset, split="test")) == len(sts())


def test_blocks_may_be_nested_and_overlap_between_threads(old_copy: None) -> None:
    before = CachedDatasetModuleFactory.get_module
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with asked_revision_only():
            inside.set()
            leave.wait(60)

    def refused() -> bool:
        try:
            datasets.load_dataset(STS.dataset, split="test")
        except ConnectionError:
            return True
        return False

    thread = threading.Thread(target=other)
    with asked_revision_only():
        with asked_revision_only():
            assert refused()
        assert refused()
        thread.start()
        assert inside.wait(60)
    assert refused(), "the other thread is inside"
    leave.set()
    thread.join()
    assert CachedDatasetModuleFactory.get_module is before and not refused()


def test_an_error_in_a_block_ends_it() -> None:
    before = CachedDatasetModuleFactory.get_module
    with pytest.raises(KeyError), asked_revision_only():
        raise KeyError("of the reader")
    assert CachedDatasetModuleFactory.get_module is before


# --------------------------------------------------------------------------- a busy hub
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_hub_is_not_called_unreachable(status: int) -> None:
    from fake_hub import answer

    error = errors.LocalEntryNotFoundError("Please check your connection")
    error.__cause__ = answer(errors.HfHubHTTPError, status)
    found = explain(error, "some/data", "main", Path("folder"))
    assert f"busy or down, it does not give some/data now ({status})" in str(found)
    assert "run the same command later" in str(found)
    assert not is_hopeless(found)


def test_without_a_connection_nothing_more_is_tried() -> None:
    error = errors.LocalEntryNotFoundError("Please check your connection")
    error.__cause__ = REFUSALS["no route"]
    found = explain(error, "some/data", "main", Path("folder"))
    assert isinstance(found, UnreachableError) and is_hopeless(found)


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_the_hub_does_not_give_is_missing_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """By what ``datasets`` makes of it; a full disk alone is no fault of the hub."""
    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    refuse_everything(monkeypatch, REFUSALS[kind])
    with pytest.raises(OSError if kind == "disk full" else DataError):
        load_task(STS)


def test_a_repository_without_the_split_or_configuration_lacks_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    hub = FakeHub(tmp_path / "hub", monkeypatch)
    repository(hub.folder / STS.dataset, {"default": {"dev": sts()}})
    for split, subset in (("test", "default"), ("dev", "en")):
        with pytest.raises(DataError, match=r"neither in a local mirror nor to be had"):
            data.load_split(STS.dataset, split, subset)
    task = get_task("SciFact")
    repository(hub.folder / task.dataset, {"corpus": {"corpus": sts()}})
    with pytest.raises(DataError, match=r"the data of SciFact .*No qrels"):
        load_task(task)


def test_the_stand_in_raises_what_the_installed_client_raises() -> None:
    """Its HTTP library has changed its name once; an error of another one tests nothing."""
    library = errors.HTTPError.__module__.partition(".")[0]
    assert type(REFUSALS["no route"]).__module__.partition(".")[0] == library
    assert isinstance(REFUSALS["busy"], errors.HTTPError)
    assert type(REFUSALS["busy"].response).__module__.partition(".")[0] == library
