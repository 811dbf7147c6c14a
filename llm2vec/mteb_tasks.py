"""The adapter between :class:`~llm2vec.encoder.LLM2Vec` and mteb, and tasks from a local mirror.

mteb scores, we encode: its own paths would double document titles, share one cache entry between
all local models, put instructions before documents in reranking, give CQADupstack no instruction
and average over poolings. So tasks run with ``cache=None``, instructions come from the registry
(paper Table 10), and one record is written per pooling. Superseded tasks are used all the same:
scores of their successors are not comparable with the paper's.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import pandas as pd
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.models.search_wrappers import SearchEncoderWrapper
from mteb.types import PromptType

from llm2vec import paths
from llm2vec.data import Source, mirror_folder, mirror_status, read_parquet, require_columns
from llm2vec.errors import DataError, SettingError
from llm2vec.hub import asked_revision_only, is_missing, reason
from llm2vec.intervals import Interval, bootstrap_interval, read_predictions
from llm2vec.prompts import format_instruction
from llm2vec.registry import Task
from llm2vec.results import hash_of
from llm2vec.task_sizes import chunk_of
from llm2vec.vectors import RepeatedRows, Vectors

OFFLINE = "llm2vec/offline"


class MTEBEncoder(AbsEncoder):
    """mteb's encoder protocol over :class:`Vectors` for one pooling and one task."""

    def __init__(self, vectors: Vectors, pooling: str, task: Task) -> None:
        self.vectors = vectors
        self.pooling = pooling
        self.instruction = format_instruction(task.instruction)
        encoder = vectors.encoder
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"llm2vec/{encoder.model.name}-{encoder.variant.name}",
                "revision": "-".join(a[:12] for a in encoder.adapters) or "none",
                "embed_dim": encoder.embedding_size,
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": encoder.variant.attention != "own",
                "modalities": ["text"],
                "experiment_kwargs": {"pooling": pooling},
            }
        )

    def encode(
        self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any
    ) -> np.ndarray | RepeatedRows:
        """Vectors (n, hidden) float32; documents of retrieval and reranking get no instruction."""
        instruction = "" if prompt_type == PromptType.document else self.instruction
        pairs = [(instruction, text) for batch in inputs for text in batch["text"]]
        return self.vectors.get(pairs, self.pooling)


# --------------------------------------------------------------------------- tasks
def load_task(task: Task) -> tuple[AbsTask, Source]:
    """mteb's task object with its data loaded: offline suite, mirror, else the hub."""
    if task.dataset == OFFLINE:
        from llm2vec.offline_suite import build_task

        built = build_task(task.name)
        built.load_data()
        return built, Source(OFFLINE, built.metadata.dataset["revision"], "asset", "built")
    loaded = _mteb_task(task)
    if isinstance(loaded, AbsTaskAggregate):
        return loaded, _merge(task, [_fill(part, _part(task, part)) for part in loaded.tasks])
    if task.subset != "default":
        loaded.hf_subsets = [task.subset]
    return loaded, _fill(loaded, task)


def _mteb_task(task: Task) -> AbsTask:
    """mteb's object of that name; :class:`DataError` where mteb has another or none."""
    try:
        loaded = mteb.get_task(task.name, eval_splits=[task.split])
    except KeyError:
        loaded = None
    if loaded is None or loaded.metadata.name != task.name:
        raise DataError(
            f"mteb {mteb.__version__} has no task {task.name}: another version may have renamed "
            "it. Install the one that requirements/lock.txt pins."
        )
    return loaded


def _part(task: Task, part: AbsTask) -> Task:
    """One of the datasets over which an aggregate (CQADupstack) is averaged."""
    data = part.metadata.dataset
    return replace(task, name=part.metadata.name, dataset=data["path"], revision=data["revision"])


def _merge(task: Task, parts: list[Source]) -> Source:
    """Origin of an aggregate: the revisions of its parts as one hash, the weakest status."""
    return Source(
        task.name,
        hash_of({part.id: part.revision for part in parts}),
        "; ".join(dict.fromkeys(part.source for part in parts)),
        _weakest(part.status for part in parts),
    )


def _weakest(statuses: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(s for s in statuses if s != "exact")) or "exact"


def _fill(loaded: AbsTask, task: Task) -> Source:
    """Load a task's data from the mirror, else from the hub.

    Raises :class:`DataError` for data that are not to be had; what says nothing of the data (a
    full disk, say) as it is.
    """
    folder = mirror_folder(task.dataset)
    if folder is not None:
        return _load_from_mirror(loaded, task, folder)
    try:
        with asked_revision_only():
            loaded.load_data()
    except Exception as error:
        if not is_missing(error):
            raise
        raise DataError(
            f"the data of {task.name} ({task.dataset}) are neither in a local mirror nor to be had "
            f"from the hub ({reason(error)}). Set LLM2VEC_DATA to a mirror that has "
            f"{task.dataset}, or run where the hub can be reached."
        ) from error
    splits = loaded.dataset.get(task.subset, loaded.dataset) if loaded.dataset else {}
    if task.split not in splits:
        raise DataError(
            f"{task.dataset} at {task.revision} has no split {task.split!r}; it has "
            f"{', '.join(map(str, splits)) or 'none'}"
        )
    if task.type == "Reranking" and not splits[task.split].get("top_ranked"):
        raise DataError(  # it would be scored as retrieval
            f"{task.dataset} at {task.revision} came without the candidates (top_ranked) that "
            f"{task.name} ranks"
        )
    return Source(task.dataset, task.revision, "hub", "exact")


# What mteb reads of a split; retrieval and reranking have a layout of their own.
_COLUMNS = {
    "STS": ("sentence1", "sentence2", "score"),
    "Classification": ("text", "label"),
    "Clustering": ("sentences", "labels"),
    "PairClassification": ("sentence1", "sentence2", "labels"),
}


def _load_from_mirror(loaded: AbsTask, task: Task, folder: Path) -> Source:
    """Fill the task from parquet files and name the weakest status among the files used."""
    used: list[Path] = []
    if isinstance(loaded, AbsTaskRetrieval):
        loaded.dataset = {"default": {task.split: _retrieval_split(folder, task, used)}}
    else:
        base = folder if task.subset == "default" else folder / task.subset
        splits = ("train", task.split) if task.type == "Classification" else (task.split,)
        used += [_existing(base / f"{split}.parquet") for split in splits]
        data = datasets.DatasetDict({file.stem: _dataset(read_parquet(file)) for file in used})
        loaded.dataset = data if task.subset == "default" else {task.subset: data}
    try:
        loaded.dataset_transform()
    except Exception as error:
        raise DataError(f"{folder}: not in the layout of {task.name} ({error})") from error
    if not isinstance(loaded, AbsTaskRetrieval):
        data = loaded.dataset if task.subset == "default" else loaded.dataset[task.subset]
        for file in used:
            present = data[file.stem].column_names
            require_columns(present, _COLUMNS.get(task.type, ()), str(file))
    loaded.data_loaded = True
    root = paths.mirror_dir()
    status = _weakest(mirror_status(root, file) for file in used)
    return Source(task.dataset, task.revision, "mirror", status)


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"the mirror lacks {file}. Complete it, or remove {file.parent} from it.")
    return file


def _dataset(frame: pd.DataFrame) -> datasets.Dataset:
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _retrieval_split(folder: Path, task: Task, used: list[Path]) -> dict[str, Any]:
    """Corpus, queries with judgements, and judgements of one split, as mteb wants them."""
    corpus_file = _existing(folder / "corpus" / "corpus.parquet")
    queries_file = _existing(folder / "queries" / "queries.parquet")
    qrels_file = _existing(folder / "qrels" / f"{task.split}.parquet")
    used += [corpus_file, queries_file, qrels_file]
    qrels = read_parquet(qrels_file, ("query-id", "corpus-id", "score"))
    relevant: dict[str, dict[str, int]] = {}
    for query, document, score in qrels[["query-id", "corpus-id", "score"]].itertuples(index=False):
        relevant.setdefault(str(query), {})[str(document)] = int(score)
    queries, corpus = _texts(queries_file), _texts(corpus_file)
    queries = queries[queries["id"].isin(relevant)]
    keep = [c for c in ("id", "title", "text") if c in corpus.columns]
    top_ranked = None
    if task.type == "Reranking":  # without candidates it would be scored as retrieval
        top_file = _existing(folder / "top_ranked" / f"{task.split}.parquet")
        used.append(top_file)
        ranked = read_parquet(top_file, ("query-id", "corpus-ids"))
        top_ranked = {
            str(q): [str(d) for d in docs]
            for q, docs in ranked[["query-id", "corpus-ids"]].itertuples(index=False)
        }
    return {
        "corpus": _dataset(corpus[keep]),
        "queries": _dataset(queries[["id", "text"]]),
        "relevant_docs": relevant,
        "top_ranked": top_ranked,
    }


def _texts(file: Path) -> pd.DataFrame:
    table = read_parquet(file).rename(columns={"_id": "id"})
    require_columns(table.columns, ("id", "text"), str(file))
    return table.astype({"id": str})


# --------------------------------------------------------------------------- evaluation
@dataclass(frozen=True)
class Evaluation:
    """What one task and pooling gave. ``score`` in 0..1.

    Tokens and encoding seconds are those of the forward passes that ``poolings_sharing`` poolings
    share: a sum over poolings would count them more than once.
    """

    pooling: str
    score: float
    scores: dict[str, Any]
    interval: Interval | None
    n: int
    seed: int
    encoding_seconds: float
    scoring_seconds: float
    tokens: int
    padding: int
    poolings_sharing: int

    @property
    def cost(self) -> dict[str, float]:
        """Cost as records carry it."""
        return {
            "seconds": round(self.encoding_seconds + self.scoring_seconds, 3),
            "encoding_seconds": round(self.encoding_seconds, 3),
            "tokens": self.tokens,
            "padding_tokens": self.padding,
            "tokens_per_second": round(self.tokens / max(self.encoding_seconds, 1e-9), 1),
            "poolings_sharing": self.poolings_sharing,
        }


def evaluate_task(vectors: Vectors, task: Task) -> tuple[list[Evaluation], Source]:
    """Score one task for every pooling of ``vectors`` with as few forward passes as possible.

    The cost of the shared passes stands with each pooling. The interval is None for aggregates
    and for what :mod:`llm2vec.intervals` does not cover.
    """
    loaded, source = load_task(task)
    done = []
    for pooling in vectors.poolings:
        wrapped = MTEBEncoder(vectors, pooling, task)
        started = time.perf_counter()
        encoding = vectors.seconds
        with tempfile.TemporaryDirectory() as predictions:
            scores = _mteb_scores(wrapped, loaded, task, predictions)
            scoring = time.perf_counter() - started - (vectors.seconds - encoding)
            interval = _interval(loaded, task, predictions)
        done.append(
            Evaluation(
                pooling=pooling,
                score=float(scores[task.metric]),
                scores=scores,
                interval=interval,
                n=_size(loaded, task),
                seed=loaded.seed,
                encoding_seconds=vectors.seconds,
                scoring_seconds=scoring,
                tokens=vectors.tokens,
                padding=vectors.padding,
                poolings_sharing=len(vectors.poolings),
            )
        )
    return done, source


def _interval(loaded: AbsTask, task: Task, predictions: str) -> Interval | None:
    if isinstance(loaded, AbsTaskAggregate):
        return None
    where = {"split": task.split, "subset": task.subset}
    try:
        found = read_predictions(loaded, predictions, **where)
        return bootstrap_interval(loaded, found, **where)
    except SettingError:  # a type of task, or a metric, without an interval
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without mteb's advice to take a task's successor, and bars and warnings of small steps."""

    def keep(entry: logging.LogRecord) -> bool:
        return "superseded" not in entry.getMessage()

    logger = logging.getLogger("mteb.abstasks.abstask")
    logger.addFilter(keep)
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(keep)
        if bars:
            datasets.enable_progress_bars()


def _chunk(loaded: AbsTask, task: Task) -> int:
    """Passages at once for a retrieval task; those of an aggregate are all handled alike."""
    parts = loaded.tasks if isinstance(loaded, AbsTaskAggregate) else [loaded]
    largest = max(len(part.dataset[task.subset][task.split]["corpus"]) for part in parts)
    return chunk_of(largest)


def _mteb_scores(
    wrapped: MTEBEncoder, loaded: AbsTask, task: Task, predictions: str
) -> dict[str, Any]:
    encoder: Any = wrapped
    if task.type == "Retrieval":
        encoder = SearchEncoderWrapper(wrapped, _chunk(loaded, task))
    with _quiet():
        result = mteb.evaluate(
            encoder,
            loaded,
            cache=None,
            co2_tracker=False,
            encode_kwargs={"batch_size": 64, "show_progress_bar": False},
            prediction_folder=predictions,
            show_progress_bar=False,
        )
    rows = result.task_results[0].scores[task.split]
    rows = [row for row in rows if row["hf_subset"] == task.subset]
    if len(rows) != 1:
        raise DataError(f"mteb gave {len(rows)} score rows for {task.name}, expected one")
    return {k: v for k, v in rows[0].items() if isinstance(v, (int, float, list))}


def _size(loaded: AbsTask, task: Task) -> int:
    """Number of test items: rows, or queries of retrieval and reranking."""
    if isinstance(loaded, AbsTaskAggregate):
        return sum(_size(part, task) for part in loaded.tasks)
    data = loaded.dataset
    if task.subset in data and task.split not in data:
        data = data[task.subset]
    split = data[task.split]
    if task.type == "PairClassification" and len(split) == 1:  # all pairs in one row, as mteb v1
        return len(split[0]["labels"])
    return len(split["queries"]) if isinstance(split, dict) else len(split)
