"""How far do hidden states move when attention sees both sides? (paper 4.2, Figures 5, 8 and 9)

Each paragraph is run twice through the same untrained weights, once with causal and once with
bidirectional attention; the cosine between the two states is taken at each layer and position.
The paper shows maps of three paragraphs: low for the LLaMA models, high for every Mistral.

    python experiments/07_layer_similarity.py --model smollm2-135m

Decisions of ours, where the paper is silent or different:

- twenty paragraphs of Wikipedia (or ``--paragraphs FILE``), the same for every model, with the
  mean and standard deviation over paragraphs beside the maps;
- layer 0 is the embedding layer, the same by construction; the last layer is taken after the
  final norm, as the model gives it;
- the tokenizer adds BOS where it does by default. The first positions are attention sinks under
  causal attention: one state of huge norm, which may vanish under bidirectional attention and
  then moves more than all others. Every mean is given with and without the first four positions,
  and the norms of both passes are kept so that sinks can be seen.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec.errors import AttentionError, DataError, SettingError
from llm2vec.registry import MAX_LENGTH, Model
from llm2vec.representations import (
    BOOTSTRAP,
    TOLERANCE,
    cosine,
    cost,
    mean_interval,
    read_text,
    revision_of,
    setting_of,
    weights_of,
)
from llm2vec.results import NONE, Key, Record, hash_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm2vec.provenance import Provenance

EXPERIMENT, VARIANT, TASK, SUFFIX = "layer_similarity", "bi", "wikipedia", ".npz"
PARAGRAPHS = 20  # the paper shows three
# 100 to 200 tokens of any of the models; by words, so that every model reads the same text.
WORDS = (85, 125)
FIRST_POSITIONS = 4
# What wikipedia_paragraphs() gives: known without reading the corpus.
WIKIPEDIA = {
    "id": "enwiki-sample", "revision": "sha256:e2b6d53c0e0531bd", "source": "asset",
    "status": "exact",
}  # fmt: skip


# --------------------------------------------------------------------------- paragraphs
@dataclass(frozen=True)
class Paragraphs:
    """Texts and where they are from; ``setting`` is None for Wikipedia, else the file's stem."""

    texts: tuple[str, ...]
    source: dict[str, str]
    setting: str | None = None


def choose_paragraphs(candidates: Sequence[str], number: int = PARAGRAPHS) -> Paragraphs:
    """Paragraphs of 85 to 125 words, those with the lowest sha256: spread over the articles.

    Raises :class:`DataError` where there are fewer than ``number``.
    """
    low, high = WORDS
    fitting = {text for text in candidates if low <= len(text.split()) <= high}
    if len(fitting) < number:
        raise DataError(
            f"{len(fitting)} of {len(candidates)} paragraphs have {low} to {high} words, {number} "
            "are needed. Give a larger text, or your own paragraphs by --paragraphs FILE."
        )
    chosen = sorted(fitting, key=lambda text: hashlib.sha256(text.encode()).digest())[:number]
    revision = f"sha256:{hash_of({'paragraphs': chosen})}"
    return Paragraphs(tuple(chosen), WIKIPEDIA | {"revision": revision})


def wikipedia_paragraphs() -> Paragraphs:
    """The project's paragraphs, of articles that no evaluation uses."""
    from llm2vec.offline_corpora import training_paragraphs

    return choose_paragraphs(training_paragraphs())


def read_paragraphs(path: Path) -> Paragraphs:
    """All paragraphs of a UTF-8 text file, an empty line between them."""
    blocks = re.split(r"\n\s*\n", read_text(path, "paragraphs"))
    texts = tuple(" ".join(block.split()) for block in blocks if block.strip())
    if not texts:
        raise DataError(f"{path} holds no paragraphs. Separate them by an empty line.")
    revision = f"sha256:{hash_of({'paragraphs': list(texts)})}"
    source = {"id": path.stem, "revision": revision, "source": "file", "status": "unverified"}
    return Paragraphs(texts, source, path.stem)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each paragraph with the tokenizer's own BOS, at most 512.

    Raises :class:`DataError` for a paragraph of fewer than two tokens: nothing follows in it.
    """
    rows = [tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in texts]
    for number, ids in enumerate(rows, 1):
        if len(ids) < 2:
            raise DataError(f"paragraph {number} has fewer than two tokens. Remove or lengthen it.")
    return rows


# --------------------------------------------------------------------------- cosines
@dataclass(frozen=True)
class LayerSimilarity:
    """Cosines and norms, each (paragraphs, layers + 1, positions) float32, NaN after the end.

    ``norms``: Euclidean norms of the causal states, ``norms_bi`` of the bidirectional ones;
    ``lengths``: tokens of each paragraph (paragraphs,).
    """

    similarity: np.ndarray
    norms: np.ndarray
    norms_bi: np.ndarray
    lengths: np.ndarray
    cost: dict[str, float]

    def save(self, file: Path) -> None:
        """Write the arrays ``similarity``, ``norms``, ``norms_bi`` and ``lengths`` as .npz."""
        with open(file, "wb") as handle:
            np.savez_compressed(
                handle,
                similarity=self.similarity,
                norms=self.norms,
                norms_bi=self.norms_bi,
                lengths=self.lengths,
            )


def layer_similarity(
    backbone: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    bidirectional: tuple[bool, bool] = (False, True),
    progress: Callable[[int], None] | None = None,
) -> LayerSimilarity:
    """Compare the states of two passes over each sequence; the backbone is left causal.

    Args:
        sequences: token ids, each of at least two tokens; run one at a time, so nothing is padded.
        bidirectional: attention of the first and of the second pass.
        progress: is told 1 after each sequence.

    Raises:
        AttentionError: the attention cannot be switched, or the embedding layer differs.
    """
    from llm2vec.attention import set_attention

    began = time.perf_counter()
    rows: list[tuple[np.ndarray, ...]] = []
    try:
        for attention in set(bidirectional):
            set_attention(backbone, attention)  # with its leak check, once per kind
        for ids in sequences:
            first, second = (_states(backbone, ids, attention) for attention in bidirectional)
            norms = [np.linalg.norm(states, axis=-1) for states in (first, second)]
            rows.append((cosine(first, second), *norms))
            if progress is not None:
                progress(1)
    finally:
        set_attention(backbone, False, verify=False)
    similarity, norms_first, norms_second = (_stack(part) for part in zip(*rows, strict=True))
    lowest = float(np.nanmin(similarity[:, 0]))
    if lowest < 1 - TOLERANCE:
        raise AttentionError(
            f"the embedding layers of the two passes differ (cosine {lowest:.6f}): something "
            "other than attention changed. Put the model in evaluation mode."
        )
    lengths = np.array([len(ids) for ids in sequences])
    spent = cost(time.perf_counter() - began, 2 * int(lengths.sum()))
    return LayerSimilarity(similarity, norms_first, norms_second, lengths, spent)


def _states(backbone: PreTrainedModel, ids: Sequence[int], bidirectional: bool) -> np.ndarray:
    """States of every layer (layers + 1, length, hidden) float32 of one sequence."""
    import torch

    from llm2vec.attention import set_attention

    set_attention(backbone, bidirectional, verify=False)
    with torch.inference_mode():
        out = backbone(
            input_ids=torch.tensor([list(ids)], device=backbone.device),
            output_hidden_states=True,
            use_cache=False,
        )
    return torch.stack([layer[0].float() for layer in out.hidden_states]).cpu().numpy()


def _stack(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Maps (layers, length) of different lengths in one float32 array, NaN after the end."""
    width = max(m.shape[1] for m in maps)
    padded = [np.pad(m, ((0, 0), (0, width - m.shape[1])), constant_values=np.nan) for m in maps]
    return np.stack(padded).astype(np.float32)


# --------------------------------------------------------------------------- the record
def settings_of(model: Model, paragraphs: Paragraphs, dtype: str | None = None) -> dict[str, Any]:
    """Hyperparameters of a run, for the record and its hash."""
    return {
        **weights_of(model, dtype),
        "paragraphs": paragraphs.source["revision"],
        "max_length": MAX_LENGTH,
        "first_positions": FIRST_POSITIONS,
        "bootstrap": dict(BOOTSTRAP),
    }


def key_of(model: Model, paragraphs: Paragraphs, dtype: str | None = None) -> Key:
    """Where the record of a run stands; :class:`SettingError` for an encoder baseline."""
    if model.kind != "decoder":
        raise SettingError(
            f"{model.name} is an encoder: its attention is bidirectional already. Choose a decoder."
        )
    setting = setting_of(model, paragraphs.setting, dtype)
    return Key(EXPERIMENT, model.name, VARIANT, NONE, TASK, setting)


def summarise(found: LayerSimilarity) -> dict[str, Any]:
    """``score``, its ``interval`` over paragraphs and the ``scores`` of a record.

    The score is the mean cosine over positions and over all layers but the embedding layer, each
    paragraph counting the same. ``mean`` and ``std`` are lists over layers, the embedding layer
    first: over the paragraphs' means; ``*_without_first`` leave out the first four positions (and
    paragraphs that have no more than these).
    """
    scores: dict[str, Any] = {}
    per_layer = np.nanmean(found.similarity.astype(np.float64), axis=2)  # (paragraphs, layers + 1)
    long = found.lengths > FIRST_POSITIONS
    rest = found.similarity[long, :, FIRST_POSITIONS:].astype(np.float64)
    for suffix, means in {
        "": per_layer,
        "_without_first": np.nanmean(rest, axis=2) if long.any() else per_layer[:0],
    }.items():
        scores |= {
            f"cosine{suffix}": float(means[:, 1:].mean()) if len(means) else None,
            f"mean{suffix}": means.mean(0).tolist() if len(means) else None,
            f"std{suffix}": means.std(0).tolist() if len(means) else None,
        }
    scores["lengths"] = found.lengths.tolist()
    paragraph_means = per_layer[:, 1:].mean(1)
    return {
        "score": scores["cosine"],
        "interval": mean_interval(paragraph_means),
        "scores": scores,
    }


def make_record(
    found: LayerSimilarity,
    model: Model,
    paragraphs: Paragraphs,
    *,
    provenance: Provenance,
) -> Record:
    """The record of one model."""
    key = key_of(model, paragraphs, provenance.dtype)
    return Record(
        **asdict(key),
        metric="cosine",
        split="all",
        n=len(found.lengths),
        model_revision=revision_of(model),
        dataset=paragraphs.source,
        hyperparameters=settings_of(model, paragraphs, provenance.dtype),
        provenance=provenance.as_dict(),
        cost=found.cost,
        **summarise(found),
    )
