"""Does a pooled beginning know what follows it? (paper 4.1, Figures 4 and 7)

Each triple has one beginning A and three continuations: q = (A, B), s+ = (A, C) with C meaning
the same as B, s- = (A, D) with D meaning something else. Each sentence is run on its own and
pooled, by the mean, **only over A's tokens**: only through attention to later tokens can A's
states tell C from D. Under causal attention both cosines are 1, which is asserted; bidirectional
attention pays off when cos(q, s+) is above cos(q, s-).

    python experiments/06_pooling_leakage.py --model smollm2-135m --variant bi-mntp

Decisions of ours, where the paper is silent or different:

- our own triples (``resources/triples.jsonl``) instead of the 35 of Springer et al. (2024), which
  ``--triples FILE`` takes in the same format; a ranking share, an interval and a test are added
  to the paper's two histograms;
- no instruction and no chat format; BOS, CLS and SEP take part but are never pooled. A tokenizer
  without BOS (SmolLM2) makes the first token of A the attention sink: it stays pooled;
- A's tokens are found by character offsets. A token that holds characters of A and of what
  follows is left out; where this changes A's other tokens too, those that the three sentences
  share from the start are pooled. ``scores.merged`` counts such triples;
- the three sentences of a triple share one batch, so that rounding treats them alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from llm2vec.errors import AttentionError, DataError
from llm2vec.paths import RESOURCES
from llm2vec.prompts import ECHO_TEMPLATE, build_prompt
from llm2vec.registry import Model, Variant
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
    without_first,
)
from llm2vec.results import NONE, Key, Record, sha256_file

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llm2vec.provenance import Provenance

EXPERIMENT, TASK, SUFFIX = "pooling_leakage", "triples", ".parquet"
OWN_TRIPLES = RESOURCES / "triples.jsonl"
TRIPLES_PER_BATCH = 16


# --------------------------------------------------------------------------- triples
@dataclass(frozen=True)
class Triple:
    """A beginning and its continuations: ``b``, its paraphrase ``c``, a diverging ``d``."""

    id: str
    a: str
    b: str
    c: str
    d: str
    topic: str = ""

    @property
    def sentences(self) -> tuple[str, str, str]:
        """q, s+ and s-."""
        return f"{self.a} {self.b}", f"{self.a} {self.c}", f"{self.a} {self.d}"


@dataclass(frozen=True)
class TripleSet:
    """Triples of one file; ``setting`` is None for the project's own set, else the file's stem."""

    triples: tuple[Triple, ...]
    sha256: str
    setting: str | None = None

    @property
    def source(self) -> dict[str, str]:
        """The ``dataset`` block of a record."""
        own = self.setting is None
        return {
            "id": "llm2vec/triples" if own else self.setting,
            "revision": f"sha256:{self.sha256[:16]}",
            "source": "package" if own else "file",
            "status": "own sentences" if own else "unverified",
        }


def load_triples(path: Path | None = None) -> TripleSet:
    """The project's triples, or those of a JSONL file with fields id, a, b, c, d and maybe topic.

    Raises :class:`DataError` naming the file and the line that is wrong.
    """
    file = path or OWN_TRIPLES
    triples: list[Triple] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(file, "triples").split("\n"), 1):
        if not line.strip():
            continue
        triple = _parse(line, f"{file}, line {number}")
        if triple.id in seen:
            raise DataError(
                f"{file}, line {number}: id {triple.id!r} is taken by line {seen[triple.id]}. "
                "Give each triple an id of its own."
            )
        seen[triple.id] = number
        triples.append(triple)
    if not triples:
        raise DataError(f"{file} holds no triples. Write one JSON object a line: {_EXAMPLE}")
    return TripleSet(tuple(triples), sha256_file(file), path.stem if path else None)


_EXAMPLE = '{"id": "1", "a": "She says", "b": "it rains.", "c": "it pours.", "d": "it snows."}'


def _parse(line: str, where: str) -> Triple:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}). Expected: {_EXAMPLE}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}: not a JSON object. Expected: {_EXAMPLE}")
    values = {"topic": "", **values}
    texts = {}
    for field in fields(Triple):
        value = values.get(field.name)
        if not isinstance(value, str) or not (value.strip() or field.name == "topic"):
            raise DataError(
                f"{where}: field {field.name!r} must be a text that is not empty, not {value!r}. "
                f"Expected: {_EXAMPLE}"
            )
        texts[field.name] = value.strip()
    return Triple(**texts)


# --------------------------------------------------------------------------- the span of A
@dataclass(frozen=True)
class Prefix:
    """Token ids of a whole input, the positions of A's tokens, and whether one merged with B."""

    ids: list[int]
    positions: list[int]
    merged: bool


def find_prefix(
    tokenizer: PreTrainedTokenizerBase, sentence: str, a: str, echo: bool = False
) -> Prefix:
    """Tokens of ``a`` at the beginning of a sentence; for echo, of the sentence's second showing.

    A token is A's when all its characters other than blanks are. BOS, CLS and SEP have none.
    """
    prompt = build_prompt("", sentence, echo=echo)
    text, low, high = prompt.string, prompt.start, prompt.start + len(a)
    encoded = tokenizer(text, return_offsets_mapping=True)
    positions, merged = [], False
    for position, (start, end) in enumerate(encoded["offset_mapping"]):
        # Some tokenizers count the blank before a word as the word's.
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if end <= low or start >= high:
            continue
        if low <= start and end <= high:
            positions.append(position)
        else:
            merged = True
    return Prefix(list(encoded["input_ids"]), positions, merged)


def find_prefixes(
    tokenizer: PreTrainedTokenizerBase, triple: Triple, echo: bool = False, limit: int = 512
) -> tuple[Prefix, Prefix, Prefix]:
    """The spans of A in q, s+ and s-, cut to the token ids that all three share from the start.

    Raises :class:`DataError` where nothing is left to pool or a sentence exceeds ``limit`` tokens.
    """
    found = [find_prefix(tokenizer, sentence, triple.a, echo) for sentence in triple.sentences]
    spans = [[prefix.ids[p] for p in prefix.positions] for prefix in found]
    shared = 0
    for column in zip(*spans, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    longest = max(len(prefix.ids) for prefix in found)
    if not shared or longest > limit:
        why = f"it has {longest} tokens, at most {limit} fit" if shared else "A has no whole token"
        raise DataError(
            f"triple {triple.id!r} cannot be used with this model: {why}. Change or remove it."
        )
    merged = any(p.merged for p in found) or any(len(span) > shared for span in spans)
    q, positive, negative = (Prefix(p.ids, p.positions[:shared], merged) for p in found)
    return q, positive, negative


# --------------------------------------------------------------------------- cosines
@dataclass(frozen=True)
class Cosines:
    """Per triple, in order: cos(q, s+), cos(q, s-), each (n,); and what the passes took."""

    ids: tuple[str, ...]
    positive: np.ndarray
    negative: np.ndarray
    merged: int
    cost: dict[str, float]

    def save(self, file: Path) -> None:
        """Write the columns id, cos_pos and cos_neg as parquet."""
        columns = {"id": list(self.ids), "cos_pos": self.positive, "cos_neg": self.negative}
        pd.DataFrame(columns).to_parquet(file, index=False)


def prefix_cosines(
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    triples: Sequence[Triple],
    *,
    echo: bool = False,
    limit: int = 512,
    progress: Callable[[int], None] | None = None,
) -> Cosines:
    """Cosines between the mean states of A's tokens in q and s+, and in q and s-.

    ``progress`` is told the number of triples done after each batch.
    """
    (found,) = cosines_without_first(
        backbone, tokenizer, triples, (0,), echo=echo, limit=limit, progress=progress
    )
    return found


def cosines_without_first(
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    triples: Sequence[Triple],
    first: Sequence[int],
    *,
    echo: bool = False,
    limit: int = 512,
    progress: Callable[[int], None] | None = None,
) -> list[Cosines]:
    """The same from one pass for several ``first``: so many positions of each sentence, which
    may hold an attention sink, are not pooled. The last token of A always is.
    """
    from llm2vec.batching import iterate  # here, as torch loads slowly

    if not tokenizer.is_fast:
        raise DataError("this tokenizer gives no character offsets; a fast tokenizer is needed")
    prefixes = [find_prefixes(tokenizer, triple, echo, limit) for triple in triples]
    # Similar lengths together: less padding.
    order = sorted(range(len(prefixes)), key=lambda i: max(len(p.ids) for p in prefixes[i]))
    both = np.empty((len(first), 2, len(prefixes)))
    tokens = padding = 0
    began = time.perf_counter()
    for start in range(0, len(order), TRIPLES_PER_BATCH):
        chunk = order[start : start + TRIPLES_PER_BATCH]
        flat = [prefix for index in chunk for prefix in prefixes[index]]
        (batch,) = iterate(
            backbone, [p.ids for p in flat], tokenizer.pad_token_id or 0, max_tokens=sys.maxsize
        )
        pooled = np.empty((len(first), len(flat), batch.hidden.shape[-1]))
        for row, index in enumerate(batch.indices):
            for kind, left in enumerate(first):
                positions = without_first(flat[index].positions, left)
                pooled[kind, index] = _mean(batch.hidden[row], positions)
        for kind, vectors in enumerate(pooled):
            q, positive, negative = vectors.reshape(len(chunk), 3, -1).swapaxes(0, 1)
            both[kind][:, chunk] = cosine(q, positive), cosine(q, negative)
        tokens += int(batch.mask.sum())
        padding += int((~batch.mask).sum())
        if progress is not None:
            progress(len(chunk))
    ids, merged = tuple(t.id for t in triples), sum(group[0].merged for group in prefixes)
    spent = cost(time.perf_counter() - began, tokens, padding)
    return [Cosines(ids, positive, negative, merged, spent) for positive, negative in both]


def _mean(states: Tensor, positions: list[int]) -> np.ndarray:
    """Mean in float32 of the states (l, d) at some positions: (d,)."""
    return states[positions].float().mean(0).cpu().numpy()


def check_cosines(cosines: Cosines, variant: Variant) -> None:
    """Assert what the attention implies; :class:`AttentionError` names the triple that fails.

    Causal (without echo): every cosine is 1 within 1e-5. Otherwise: not every cosine is.
    """
    distance = np.maximum(np.abs(1 - cosines.positive), np.abs(1 - cosines.negative))
    worst = int(distance.argmax())
    if variant.attention == "causal" and not variant.echo:
        if not distance[worst] <= TOLERANCE:  # NaN fails as well
            raise AttentionError(
                f"triple {cosines.ids[worst]!r}: the beginning's states feel what follows (cosine "
                f"{1 - distance[worst]:.6f}, expected 1 within {TOLERANCE:g}) although the variant "
                f"{variant.name!r} is causal. Check the attention, or use --dtype float32."
            )
    elif distance[worst] <= TOLERANCE:
        raise AttentionError(
            f"no beginning's states feel what follows although the variant {variant.name!r} sees "
            "it: every cosine is 1. Check the attention of the backbone."
        )


# --------------------------------------------------------------------------- the record
def settings_of(
    model: Model, variant: Variant, triples: TripleSet, dtype: str | None = None
) -> dict[str, Any]:
    """Hyperparameters of a run, for the record and its hash."""
    return {
        **weights_of(model, dtype),
        "triples_sha256": triples.sha256,
        "pooling": "mean over the tokens of A",
        "echo_template": list(ECHO_TEMPLATE) if variant.echo else None,
        "tie": TOLERANCE,
        "bootstrap": dict(BOOTSTRAP),
    }


def key_of(
    model: Model, variant: Variant, triples: TripleSet, dtype: str | None = None, whose: str = "own"
) -> Key:
    """Where the record of a run stands; ``whose``: the adapters, own or published."""
    authors = whose if whose != "own" and variant.stages else None
    setting = setting_of(model, triples.setting, dtype, authors)
    return Key(EXPERIMENT, model.name, variant.name, NONE, TASK, setting)


def summarise(cosines: Cosines) -> dict[str, Any]:
    """``score``, its ``interval`` and the ``scores`` of a record.

    The score is the share of triples with cos(q, s+) above cos(q, s-); a difference of at most
    1e-5 is a tie and counts half. The test is Wilcoxon's signed-rank test of the gaps, two-sided,
    ties as zeros; with nothing but ties its p is 1.
    """
    gaps = cosines.positive - cosines.negative
    gaps = np.where(np.abs(gaps) <= TOLERANCE, 0.0, gaps)
    right = (np.sign(gaps) + 1) / 2
    statistic, p = (0.0, 1.0) if not gaps.any() else stats.wilcoxon(gaps)
    return {
        "score": float(right.mean()),
        "interval": mean_interval(right),
        "scores": {
            "cosine_positive": float(cosines.positive.mean()),
            "cosine_negative": float(cosines.negative.mean()),
            "gap": float(gaps.mean()),
            "gap_interval": mean_interval(gaps),
            "wilcoxon": float(statistic),
            "p": float(p),
            "ties": int((gaps == 0).sum()),
            "merged": cosines.merged,
        },
    }


def make_record(
    cosines: Cosines,
    model: Model,
    variant: Variant,
    triples: TripleSet,
    *,
    adapters: tuple[str, ...],
    provenance: Provenance,
    whose: str = "own",
) -> Record:
    """The record of one model and variant."""
    key = key_of(model, variant, triples, provenance.dtype, whose)
    return Record(
        **asdict(key),
        metric="ranking_accuracy",
        split="all",
        n=len(cosines.ids),
        model_revision=revision_of(model),
        dataset=triples.source,
        hyperparameters=settings_of(model, variant, triples, provenance.dtype),
        provenance=provenance.as_dict(),
        cost=cosines.cost,
        adapters=adapters,
        **summarise(cosines),
    )
