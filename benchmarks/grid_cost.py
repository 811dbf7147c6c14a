"""What the whole grid costs: tokens through the model for Tables 4 and 5, padding included.

    python -m benchmarks.grid_cost
    python -m benchmarks.grid_cost --suite offline --output build/bench

No model runs. Table 5: every text that mteb asks for, in the calls that it makes (noted by a
stand-in encoder), tokenized by SmolLM2's tokenizer, over the tasks of ``--suite`` whose data are
at hand. The published way runs each of six variants and three poolings through every call, 32
texts a batch, sorted by characters, repeated texts again. Here a text runs once per variant, for
all poolings that one pass can serve, in batches of like length. Table 4: see
``benchmarks/word_features.py``. The calls are those of the mteb used here, for both ways.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer

from benchmarks.report import RESULTS, Report
from llm2vec.console import run
from llm2vec.errors import DataError
from llm2vec.estimates import passes_of
from llm2vec.inputs import Pair
from llm2vec.registry import POOLINGS, SUITES, VARIANTS, Variant, get_model, get_suite, get_task

if TYPE_CHECKING:
    from llm2vec.mteb_tasks import Source

MODEL = "smollm2-135m"
TABLE5 = ("uni", "bi", "bi-mntp", "uni-simcse", "bi-simcse", "bi-mntp-simcse")
BATCH = 32  # texts: the published default
Call = Sequence[Pair]


class Cost(NamedTuple):
    """Tokens through the model, padding included, and how many of them are padding."""

    tokens: int
    padding: int

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.tokens + other.tokens, self.padding + other.padding)

    def times(self, factor: int) -> Cost:
        return Cost(self.tokens * factor, self.padding * factor)


def rectangles(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> Cost:
    """Cost of batches, each padded to its longest row."""
    total = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return Cost(total, total - sum(lengths[i] for batch in batches for i in batch))


# --------------------------------------------------------------------------- Table 5
def published_batches(call: Call) -> list[list[int]]:
    """Batches of one call as the published ``encode`` makes them."""
    order = sorted(range(len(call)), key=lambda i: -sum(map(len, call[i])))
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


def published_cost(calls: Sequence[Call], lengths: dict[Pair, int]) -> Cost:
    """One variant, all poolings: every call again for each pooling; ``eos`` has one token more."""
    total = Cost(0, 0)
    for call in calls:
        batches = published_batches(call)
        for pooling in POOLINGS:
            rows = [lengths[pair] + (pooling == "eos") for pair in call]
            total += rectangles(rows, batches)
    return total


def cost_here(calls: Sequence[Call], lengths: dict[Pair, int], variant: Variant) -> Cost:
    """One variant, all poolings: each text once, in as many passes as its attention needs."""
    from llm2vec.batching import token_batches

    unique = list(dict.fromkeys(pair for call in calls for pair in call))
    rows = [lengths[pair] for pair in unique]
    with_eos = [length + 1 for length in rows]
    cost = rectangles(with_eos, token_batches(with_eos))
    if passes_of(variant, len(POOLINGS)) == 1:
        return cost
    return cost + rectangles(rows, token_batches(rows))


class Recorder:
    """Stands in for vectors of an encoder: notes what is asked for, answers with noise."""

    poolings = ("mean",)
    seconds, tokens, padding, size = 0.0, 0, 0, 8

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._dice = np.random.default_rng(0)
        self.encoder = SimpleNamespace(
            model=get_model(MODEL), variant=VARIANTS["uni"], adapters=(),
            embedding_size=self.size,
        )  # fmt: skip

    def get(self, pairs: Call, pooling: str) -> np.ndarray:
        self.calls.append(list(pairs))
        return self._dice.standard_normal((len(pairs), self.size)).astype(np.float32)


def recorded(names: Sequence[str]) -> Iterator[tuple[str, list[Call], Source]]:
    """What mteb asks of an encoder for each task whose data are at hand."""
    from llm2vec.mteb_tasks import evaluate_task

    for name in names:
        recorder = Recorder()
        try:
            _, source = evaluate_task(recorder, get_task(name))  # type: ignore[arg-type]
        except DataError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        yield name, recorder.calls, source


def token_lengths(pairs: Sequence[Pair], tokenizer: Any) -> dict[Pair, int]:
    """Tokens of each (instruction, text), cut and wrapped as for the model."""
    from llm2vec import prompts
    from llm2vec.registry import MAX_LENGTH, TEXT_MAX_LENGTH

    texts = prompts.shorten([text for _, text in pairs], tokenizer, TEXT_MAX_LENGTH, MAX_LENGTH)
    built = [prompts.build_prompt(instruction, text, get_model(MODEL), False)
             for (instruction, _), text in zip(pairs, texts, strict=True)]  # fmt: skip
    rows = prompts.tokenize(built, tokenizer, MAX_LENGTH)
    return {pair: len(row.ids) for pair, row in zip(pairs, rows, strict=True)}


def table5(names: Sequence[str], tokenizer: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of both ways over all six variants, and the tasks that were counted."""
    published, here, found = Cost(0, 0), Cost(0, 0), []
    for name, calls, source in recorded(names):
        pairs = list(dict.fromkeys(pair for call in calls for pair in call))
        lengths = token_lengths(pairs, tokenizer)
        published += published_cost(calls, lengths).times(len(TABLE5))
        for variant in TABLE5:
            here += cost_here(calls, lengths, VARIANTS[variant])
        found.append(f"{name} ({source.source}, {source.status})")
    if not found:
        raise DataError(
            "no task's data are at hand: set LLM2VEC_DATA to a mirror, or take --suite offline"
        )
    passes = sum(passes_of(VARIANTS[v], len(POOLINGS)) for v in TABLE5)
    label = f"Table 5: 6 variants, 3 poolings, {len(found)} tasks"
    ways = (("published: 18 passes, 32 texts a batch", published, False),
            (f"here: {passes} passes, texts once", here, True))  # fmt: skip
    return [_row(label, *way) for way in ways], found


def _row(table: str, way: str, cost: Cost, here: bool) -> dict[str, Any]:
    return {"table": table, "way": way, "tokens": cost.tokens, "padding": cost.padding,
            "here": here}  # fmt: skip


# --------------------------------------------------------------------------- Table 4
def table4(tokenizer: Any) -> list[dict[str, Any]]:
    """Rows of both ways for one variant and the three word-level tasks."""
    from benchmarks.word_features import STEPS, lengths_of, padded, published_tokens
    from llm2vec.batching import token_batches
    from llm2vec.registry import PROBE
    from llm2vec.words import load_corpus, tokenize

    corpus, _ = load_corpus("conll2003")
    lengths = {
        split: lengths_of(tokenize(tokenizer, sentences, PROBE.max_length))
        for split, sentences in corpus.items()
    }
    label = "Table 4: one variant, 3 tasks"
    rows = []
    for way, steps, validate in (
        (f"published: {STEPS:,} steps, validation", STEPS, True),
        (f"published way, {PROBE.steps:,} steps, none", PROBE.steps, False),
    ):
        counts = published_tokens(lengths, steps, validate)
        total = sum(counts[part] for part in ("train", "validation", "test"))
        rows.append(_row(label, way, Cost(total, total - counts["real"]), False))
    everything = np.concatenate(list(lengths.values()))
    total = padded(everything, token_batches(everything.tolist()))
    cost = Cost(int(total), int(total - everything.sum()))
    return [*rows, _row(label, "here: features once, all tasks and seeds", cost, True)]


def main(
    suite: Annotated[str, typer.Option(help=f"One of {', '.join(SUITES)}.")] = "exact8",
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Count tokens of both ways and print their ratio."""
    names = get_suite(suite)
    report = Report("grid_cost", {"model": MODEL, "suite": suite}, [])
    from transformers import AutoTokenizer

    from llm2vec.assets import model_folder

    tokenizer = AutoTokenizer.from_pretrained(model_folder(MODEL))
    notes = ["Counted from the real texts with SmolLM2's tokenizer; no model ran."]
    rows: list[dict[str, Any]] = []
    try:
        rows += table4(tokenizer)
        notes.append("Table 4: CoNLL-2003, all splits.")
    except DataError as error:
        notes.append("Table 4 was not counted: CoNLL-2003 was not at hand.")
        print(f"Table 4 is left out: {error}", file=sys.stderr)
    counted, found = table5(names, tokenizer)
    notes.append(f"Table 5: {len(found)} tasks, {'; '.join(found)}.")
    report.write(output, rows=rows + counted, notes=notes)


if __name__ == "__main__":
    run(main)
