"""A drawn part of an STS task: the same pairs for every run, scored as mteb scores them.

For measurements that are many (:mod:`llm2vec.ablations`, :mod:`llm2vec.attention_sink`), where the
whole task would cost too much and paired differences are what counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from mteb.abstasks import AbsTask
from scipy.stats import spearmanr

from llm2vec.data import Source
from llm2vec.intervals import RESAMPLES, Interval, bootstrap_difference, bootstrap_interval
from llm2vec.mteb_tasks import load_task
from llm2vec.registry import Task
from llm2vec.representations import cosine


@dataclass(frozen=True)
class Pairs:
    """Pairs of one split; ``task`` is mteb's object, which holds just these."""

    task: AbsTask
    source: Source
    split: str

    def __len__(self) -> int:
        return len(self.task.dataset[self.split])

    @property
    def texts(self) -> list[str]:
        """The first texts of all pairs, then the second ones: (2n,)."""
        data = self.task.dataset[self.split]
        return [text for side in ("sentence1", "sentence2") for text in data[side]]

    def similarity(self, vectors: np.ndarray) -> np.ndarray:
        """Cosine (n,) of the two texts of each pair; vectors (2n, hidden) as :attr:`texts`."""
        return cosine(vectors[: len(self)], vectors[len(self) :])

    def spearman(self, similarity: np.ndarray) -> tuple[float, Interval]:
        """Correlation with the gold scores, and its bootstrap interval."""
        score = float(spearmanr(similarity, self.task.dataset[self.split]["score"])[0])
        predictions = _predictions(similarity)
        return score, bootstrap_interval(
            self.task, predictions, split=self.split, resamples=RESAMPLES
        )

    def difference(self, similarity: np.ndarray, baseline: np.ndarray) -> Interval:
        """How much higher the correlation is than that of a baseline on the same pairs."""
        sides = _predictions(similarity), _predictions(baseline)
        return bootstrap_difference(self.task, *sides, split=self.split, resamples=RESAMPLES)


def _predictions(similarity: np.ndarray) -> dict[str, list[float]]:
    return {"cosine_scores": similarity.tolist()}


def draw_pairs(task: Task, split: str, items: int, seed: int) -> Pairs:
    """``items`` pairs of a split (all, where there are fewer), in the data's order."""
    loaded, source = load_task(replace(task, split=split))
    pairs = loaded.dataset[split]
    size = min(items, len(pairs))
    rows = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:size])
    loaded.dataset[split] = pairs.select(rows)
    return Pairs(loaded, source, split)
