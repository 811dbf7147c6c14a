"""Millions of rows of few texts: each text is held once, and the scores are the same."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_mirror import DIMENSIONS, StubEncoder, add_task, bag_of_words

from llm2vec import vectors as module
from llm2vec.registry import get_task
from llm2vec.vectors import RepeatedRows, Vectors

TEXTS = [f"text number {i}" for i in range(100)]
RERANKING = get_task("MindSmallReranking")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows count as many."""
    monkeypatch.setattr(module, "MANY_ROWS", 30)
    monkeypatch.setattr(module, "OFTEN", 4)


def ask(folder: Path, texts: list[str]) -> np.ndarray | RepeatedRows:
    return Vectors(StubEncoder(), ("mean",), folder).get([("", text) for text in texts], "mean")


# --------------------------------------------------------------------------- rows
def test_rows_of_few_texts_take_the_memory_of_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_ROWS", 100_000)
    pairs = [("", TEXTS[i % 100]) for i in range(100_000)]
    store = Vectors(StubEncoder(), ("mean",), tmp_path)
    tracemalloc.start()
    try:
        rows = store.get(pairs, "mean")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6 < 4 * DIMENSIONS * len(pairs) / 50
    assert rows.shape == (100_000, DIMENSIONS)
    np.testing.assert_array_equal(rows[77_742], bag_of_words(TEXTS[42], "mean"))


@pytest.mark.usefixtures("small")
def test_they_are_read_as_an_array_is(tmp_path: Path) -> None:
    texts = [TEXTS[i % 7] for i in range(50)]
    rows = ask(tmp_path, texts)
    assert isinstance(rows, RepeatedRows)
    whole = np.stack([bag_of_words(text, "mean") for text in texts])
    assert (rows.shape, rows.ndim, rows.dtype, len(rows)) == (whole.shape, 2, np.float32, 50)
    for which in (0, -1, np.int64(8), slice(3, 20), [5, 1, 5], whole[:, 0] >= 0):
        np.testing.assert_array_equal(rows[which], whole[which])
    np.testing.assert_array_equal(np.asarray(rows), whole)
    np.testing.assert_array_equal(np.stack(list(rows)), whole)
    assert torch.equal(torch.as_tensor(rows[3]).unsqueeze(0), torch.from_numpy(whole[3:4]))
    with pytest.raises(IndexError):
        rows[50]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("rows", "distinct"), [(29, 1), (50, 13), (50, 50)])
def test_fewer_rows_or_more_texts_are_a_plain_array(
    tmp_path: Path, rows: int, distinct: int
) -> None:
    assert type(ask(tmp_path, [TEXTS[i % distinct] for i in range(rows)])) is np.ndarray


def test_only_the_reranking_of_news_has_as_many_rows() -> None:
    """2,362,514; the next task, a clustering, has 732,723 over all its sets."""
    assert 732_723 < module.MANY_ROWS <= 2_362_514
    assert module.OFTEN * 37_162 <= 2_362_514


# --------------------------------------------------------------------------- scores
def add_repeated_queries(root: Path) -> None:
    """Forty queries of three texts; each has candidates of its own."""
    folder = add_task(root, RERANKING)
    texts = ("how long do cats sleep", "who lends money", "players on a board")
    names = [f"q{i}" for i in range(40)]
    documents = ["d1", "d2", "d3", "d4"]
    tables: dict[str, dict[str, Any]] = {
        "queries/queries": {"_id": names, "text": [texts[i % 3] for i in range(40)]},
        "qrels/test": {
            "query-id": names, "corpus-id": [documents[i % 4] for i in range(40)],
            "score": [1] * 40,
        },
        "top_ranked/test": {
            "query-id": names,
            "corpus-ids": [documents[i % 4 :] + documents[: i % 2] for i in range(40)],
        },
    }  # fmt: skip
    for name, columns in tables.items():
        pd.DataFrame(columns).to_parquet(folder / f"{name}.parquet")


def test_a_reranking_scores_the_same(
    empty_mirror: Path, evaluate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_repeated_queries(empty_mirror)
    before = evaluate(RERANKING.name, StubEncoder(), ("mean",))
    monkeypatch.setattr(module, "MANY_ROWS", 40)
    made: list[RepeatedRows] = []

    class Noted(RepeatedRows):
        def __init__(self, *arguments: np.ndarray) -> None:
            super().__init__(*arguments)
            made.append(self)

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            raise AssertionError("the whole array is made after all")

    monkeypatch.setattr(module, "RepeatedRows", Noted)
    after = evaluate(RERANKING.name, StubEncoder(), ("mean",))
    assert [len(rows) for rows in made] == [40]
    assert after[0].scores == before[0].scores
    assert after[0].interval == before[0].interval
    assert 0 < after[0].scores["ndcg_at_1"] < 1
