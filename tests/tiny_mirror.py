"""A mirror of a few rows per dataset, and a bag of words in the encoder's place."""

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from llm2vec.registry import POOLINGS, get_model, get_variant

Pair = tuple[str, str]
DIMENSIONS = 512

PAIRS = [
    ("a cat sits on the mat", "a cat sat on a mat", 4.6),
    ("a dog runs in the park", "the stock market fell", 0.1),
    ("a red car drives by", "a red car is parked", 3.2),
    ("the sky is blue today", "the grass is green", 1.1),
    ("two men play chess", "two men play a game of chess", 4.9),
    ("she reads a long book", "he paints the old fence", 0.4),
]
SPORT = [f"the team number {i} scored a goal in the match" for i in range(12)]
MONEY = [f"the bank number {i} raised its price of stock" for i in range(12)]
DOCUMENTS = [
    ("d1", "Cats", "cats sleep most of the day"),
    ("d2", "", "dogs run in the park"),
    ("d3", "Banks", "banks lend money at a price"),
    ("d4", "Chess", "two players move pieces on a board"),
]
QUERIES = [
    ("q1", "how long do cats sleep"),
    ("q2", "who lends money"),
    ("q3", "nobody judged this"),
]
JUDGED = [("q1", "d1", 1), ("q2", "d3", 1)]


# --------------------------------------------------------------------------- mirror
def _write(folder: Path, name: str, columns: dict[str, list[Any]]) -> None:
    file = folder / f"{name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(file)


def add_sts(folder: Path) -> None:
    first, second, scores = zip(*PAIRS, strict=True)
    columns = {"sentence1": list(first), "sentence2": list(second), "score": list(scores)}
    _write(folder, "test", columns)


def add_classification(folder: Path) -> None:
    _write(folder, "train", {"text": SPORT[:8] + MONEY[:8], "label": [0] * 8 + [1] * 8})
    _write(folder, "test", {"text": SPORT[8:] + MONEY[8:], "label": [0] * 4 + [1] * 4})


def add_clustering(folder: Path) -> None:
    sentences, labels = SPORT + MONEY, ["sport"] * 12 + ["money"] * 12
    _write(folder, "test", {"sentences": [sentences] * 2, "labels": [labels] * 2})


def add_pairs(folder: Path) -> None:
    """All pairs in one row, as the hub has them."""
    first, second, scores = zip(*PAIRS, strict=True)
    labels = [int(score > 2.5) for score in scores]
    _write(folder, "test", {"sent1": [first], "sent2": [second], "labels": [labels]})


def add_retrieval(folder: Path) -> None:
    ids, titles, texts = map(list, zip(*DOCUMENTS, strict=True))
    _write(folder, "corpus/corpus", {"_id": ids, "title": titles, "text": texts})
    ids, texts = map(list, zip(*QUERIES, strict=True))
    _write(folder, "queries/queries", {"_id": ids, "text": texts})
    queries, documents, scores = map(list, zip(*JUDGED, strict=True))
    columns = {"query-id": queries, "corpus-id": documents, "score": scores}
    _write(folder, "qrels/test", columns)


def add_reranking(folder: Path) -> None:
    add_retrieval(folder)
    columns = {"query-id": ["q1", "q2"], "corpus-ids": [["d2", "d1"], ["d3", "d4", "d2"]]}
    _write(folder, "top_ranked/test", columns)


BUILDERS = {
    "STS": add_sts,
    "Classification": add_classification,
    "Clustering": add_clustering,
    "PairClassification": add_pairs,
    "Retrieval": add_retrieval,
    "Reranking": add_reranking,
}


def add_task(root: Path, task: Any, status: str = "exact") -> Path:
    """The data of a task below ``root``, listed in its manifest; returns the dataset's folder."""
    folder = root / task.dataset
    BUILDERS[task.type](folder if task.subset == "default" else folder / task.subset)
    for file in sorted(folder.rglob("*.parquet")):
        add_status(root, task.dataset, file.relative_to(folder).as_posix(), status)
    return folder


def add_status(root: Path, dataset: str, file: str, status: str) -> None:
    manifest = root / "MANIFEST.csv"
    new = not manifest.exists()
    rows = [] if new else list(csv.reader(manifest.open(newline="")))[1:]
    rows = [row for row in rows if row[:2] != [dataset, file]] + [[dataset, file, status]]
    with open(manifest, "w", newline="") as handle:
        csv.writer(handle).writerows([["dataset", "file", "status"], *rows])


# --------------------------------------------------------------------------- encoder
def bag_of_words(text: str, pooling: str) -> np.ndarray:
    """Counts of hashed words; each pooling hashes in its own way, ``eos`` sees one word only."""
    words = text.lower().split()
    vector = np.zeros(DIMENSIONS, np.float32)
    for word in words[-1:] if pooling == "eos" else words:
        vector[zlib.crc32(f"{pooling} {word}".encode()) % DIMENSIONS] += 1
    return vector


class StubEncoder:
    """Stands in for LLM2Vec where mteb's handling is tested; notes every pair it encodes."""

    embedding_size = DIMENSIONS
    device = "cpu"
    dtype = "float32"
    attention_implementation = "none"

    def __init__(
        self,
        model: str = "smollm2-135m",
        variant: str = "uni",
        adapters: tuple[str, ...] = (),
    ) -> None:
        self.model, self.variant = get_model(model), get_variant(variant)
        self.adapters = adapters
        self.poolings = ("none",) if self.variant.attention == "own" else POOLINGS
        self.counter = SimpleNamespace(tokens=0, padding=0)
        self.calls: list[tuple[tuple[Pair, ...], tuple[str, ...]]] = []

    def encode_poolings(
        self, pairs: Sequence[Pair], poolings: Sequence[str], **_: Any
    ) -> dict[str, np.ndarray]:
        self.calls.append((tuple(pairs), tuple(poolings)))
        self.counter.tokens += sum(len(text.split()) for _, text in pairs)
        self.counter.padding += len(pairs)
        return {p: np.stack([bag_of_words(text, p) for _, text in pairs]) for p in poolings}

    @property
    def pairs(self) -> list[Pair]:
        """Every pair in the order in which it was encoded."""
        return [pair for pairs, _ in self.calls for pair in pairs]


def few_resamples(*arguments: Any, **options: Any) -> Any:
    """The bootstrap with 20 draws: enough to see that it is there."""
    from llm2vec.intervals import bootstrap_interval

    return bootstrap_interval(*arguments, **options, resamples=20)
