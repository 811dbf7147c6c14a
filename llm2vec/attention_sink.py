"""Does the attention sink on the first token dominate mean pooling? (a question of this project)

A decoder parks attention that it does not need on its first position, whose states grow large and
unlike all others. SmolLM2's tokenizer adds no BOS, so that position is a word. Behind an
instruction it is the instruction's and is not pooled; without one it is pooled with the text.

    python experiments/09_attention_sink.py --model smollm2-135m --variant bi

Pairs of STSBenchmark (validation, the part on which the training ablations are compared), with and
without instruction, and the triples of :mod:`llm2vec.leakage`, which have none, are pooled by the
mean without the first 0, 1 and 4 positions. The control leaves out as many of the text's own tokens
behind the instruction: words go, the sink does not. One forward pass gives every mean; differences
are paired with the whole span of the same pass. Two measurements show the sink itself: the norm of
the first position's state over the median norm of the others, as it is pooled (after the final
norm) and at each layer before, there beside the largest of all positions; and the first position's
share of the pooled vector p, the part of p that comes from it along p: (h_1 . p) / (n |p|^2), which
adds up to 1 over the n pooled positions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec import leakage
from llm2vec.adapters import adapter_hashes
from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.evaluation import hyperparameters as evaluation_settings
from llm2vec.evaluation import plan as evaluation_plan
from llm2vec.prompts import format_instruction
from llm2vec.provenance import capture_provenance, git_state
from llm2vec.registry import (
    ADAPTER_SOURCES,
    DTYPES,
    Model,
    Variant,
    get_model,
    get_task,
    get_variant,
)
from llm2vec.registry_sink import CONTROL, INSTRUCTED, PAIRS, PLAIN, Left
from llm2vec.representations import cost, mean_interval, revision_of, without_first
from llm2vec.results import Key, Record, is_done, write_record

if TYPE_CHECKING:  # planning does without torch
    from torch import Tensor

    from llm2vec.encoder import LLM2Vec

EXPERIMENT, POOLING, SEED = "attention_sink", "mean", 42
Measurement = dict[str, Any]  # the fields of a record that a pass gives
PASSES = ((PAIRS.task, PLAIN), (PAIRS.task, INSTRUCTED + CONTROL), (leakage.TASK, PLAIN))


# --------------------------------------------------------------------------- what to measure
@dataclass(frozen=True)
class Run:
    """One model and variant; ``adapters``: own or published."""

    model: Model
    variant: Variant
    dtype: str
    adapters: str = "own"

    def key(self, task: str, left: Left) -> Key:
        """Place of a record; its setting names what is left out, and another dtype or adapter."""
        marks = [self.dtype] if self.dtype != self.model.dtype else []
        marks += [self.adapters] if self.adapters != "own" and self.variant.stages else []
        setting = "-".join([left.setting, *marks])
        return Key(EXPERIMENT, self.model.name, self.variant.name, POOLING, task, setting)

    def hyperparameters(self, task: str, left: Left) -> dict[str, Any]:
        """What decides a score besides adapters and code."""
        if task == leakage.TASK:
            triples = leakage.load_triples()
            how = leakage.settings_of(self.model, self.variant, triples, self.dtype)
            how |= {"instruction": ""}
        else:
            suite = evaluation_plan(
                self.model.name, self.variant.name, "full", Path(), task=task, pooling=POOLING,
                dtype=self.dtype,
            )  # fmt: skip
            how = evaluation_settings(suite, get_task(task), POOLING)
            how |= {"split": PAIRS.split, "items": PAIRS.items, "seed": SEED}
            how |= {} if left.instruction else {"instruction": ""}
        return how | {"without_first": left.first, "counted_in": left.of}


def plan(model: str, variant: str, adapters: str = "own", dtype: str | None = None) -> Run:
    """Check every name before anything is loaded; errors list the valid ones."""
    spec, kind = get_model(model), get_variant(variant)
    if spec.kind != "decoder" or kind.attention == "own" or kind.echo:
        raise SettingError(
            f"{model} {variant} does not pool a text from its first position on. Choose a decoder "
            "and a variant without echo."
        )
    if adapters not in ADAPTER_SOURCES:
        raise UnknownNameError("source of adapters", adapters, ADAPTER_SOURCES)
    dtype = (dtype or spec.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    return Run(spec, kind, dtype, adapters)


def execute(
    run: Run,
    results: Path,
    device: str | None = None,
    passes: Sequence[tuple[str, Sequence[Left]]] = PASSES,
) -> list[Path]:
    """Measure what is missing; returns the files of all records, written now or before."""
    git_state()  # of the code that runs now, whatever is edited meanwhile
    hashes = adapter_hashes(run.model, run.variant, run.adapters)
    files, encoder = [], None
    for task, lefts in passes:
        keys = {left: run.key(task, left) for left in lefts}
        files += [key.path(results) for key in keys.values()]
        settings = {left: run.hyperparameters(task, left) for left in lefts}
        missing = [x for x in lefts if not is_done(keys[x], results, settings[x], hashes)]
        if not missing:
            continue
        encoder = encoder or _load(run, device)
        origin = capture_provenance(
            str(encoder.device), run.dtype, encoder.attention_implementation
        )
        measure = _triples if task == leakage.TASK else _pairs
        for left, values in measure(encoder, lefts).items():
            record = Record(
                **asdict(keys[left]),
                model_revision=revision_of(run.model),
                adapters=encoder.adapters,
                hyperparameters=settings[left],
                provenance=origin.as_dict(),
                **values,
            )
            if left in missing:
                write_record(record, results)
                _say(f"  {task}, {left.setting}: {100 * record.score:.2f}")
    return files


def _load(run: Run, device: str | None) -> LLM2Vec:
    from llm2vec import encoder

    return encoder.load_encoder(
        run.model.name, run.variant.name, adapters=run.adapters, dtype=run.dtype, device=device
    )


# --------------------------------------------------------------------------- pooling
@dataclass(frozen=True)
class Sink:
    """The first position of each of n texts.

    ``norm``: norm of its pooled state over the median of the others' (n,), NaN for a text of one
    token; ``norms``: the same after each block but the last (blocks, n); ``largest``: that of the
    position where it is largest, which need not be the first (blocks, n); ``share``: its share of
    the whole mean (n,), 0 where it is not pooled; ``even``: what each pooled position would have if
    all were alike (n,).
    """

    norm: np.ndarray
    norms: np.ndarray
    largest: np.ndarray
    share: np.ndarray
    even: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Medians of the ratios of norms, means of the shares, over texts."""
        return {
            "norm_ratio": float(np.nanmedian(self.norm)),
            "norm_ratio_by_layer": np.nanmedian(self.norms, axis=1).tolist(),
            "largest_ratio_by_layer": np.nanmedian(self.largest, axis=1).tolist(),
            "share": float(self.share.mean()),
            "even_share": float(self.even.mean()),
        }


@dataclass(frozen=True)
class Pooled:
    """Means (n, hidden) float32 of n texts by what is left out; ``kept``: texts so short that
    their last token stayed in although it should have been left out."""

    vectors: Mapping[Left, np.ndarray]
    kept: Mapping[Left, int]
    sink: Sink
    cost: dict[str, float]


def pool_without(
    encoder: LLM2Vec, pairs: Sequence[tuple[str, str]], lefts: Sequence[Left]
) -> Pooled:
    """Mean vectors of (instruction, text) pairs, from one pass over the different ones.

    Raises :class:`SettingError` for a number of positions that cannot be left out.
    """
    import torch

    from llm2vec.batching import iterate
    from llm2vec.pooling import mean_pool

    unique = list(dict.fromkeys(pairs))
    tokens = encoder.tokenize(unique)
    spans = [[i for i, pooled in enumerate(t.span) if pooled] for t in tokens]
    kept = {left: [_positions(span, left) for span in spans] for left in lefts}
    vectors = {x: np.empty((len(unique), encoder.embedding_size), np.float32) for x in lefts}
    order: list[int] = []
    first = []  # of each text: shares, then ratios of norms
    began, passed, padding = time.perf_counter(), 0, 0
    for batch in iterate(
        encoder.backbone, [t.ids for t in tokens], encoder.tokenizer.pad_token_id,
        encoder.max_tokens, layers=True,
    ):  # fmt: skip
        for left in lefts:
            mask = _mask(batch.mask, [kept[left][i] for i in batch.indices])
            vectors[left][batch.indices] = mean_pool(batch.hidden, mask).cpu().numpy()
        span = _mask(batch.mask, [spans[i] for i in batch.indices])
        norms = [_norm_ratios(x, batch.mask) for x in (batch.hidden, *batch.layers[1:-1])]
        ratios = (ratio for kind in zip(*norms, strict=True) for ratio in kind)
        first.append(torch.stack([*_shares(batch.hidden, span), *ratios]).cpu().numpy())
        order += batch.indices
        passed += int(batch.mask.sum())
        padding += int((~batch.mask).sum())
    share, even, *ratios = np.concatenate(first, axis=1)[:, np.argsort(order)]
    (norm, *norms), (_, *largest) = np.split(np.array(ratios), 2)
    row_of = {pair: row for row, pair in enumerate(unique)}
    rows_of_pairs = [row_of[pair] for pair in pairs]
    return Pooled(
        {left: values[rows_of_pairs] for left, values in vectors.items()},
        {left: sum(_stayed(s, k, left) for s, k in zip(spans, kept[left], strict=True))
         for left in lefts},
        Sink(norm, np.array(norms), np.array(largest), share, even),
        cost(time.perf_counter() - began, passed, padding),
    )  # fmt: skip


def _positions(span: Sequence[int], left: Left) -> list[int]:
    """Positions of a span that are pooled; of a text, positions count from the span's first."""
    begin = span[0] if left.of == "text" else 0
    return [begin + p for p in without_first([p - begin for p in span], left.first)]


def _stayed(span: Sequence[int], kept: Sequence[int], left: Left) -> bool:
    begin = span[0] if left.of == "text" else 0
    return kept[0] - begin < left.first


def _mask(like: Tensor, positions: Sequence[Sequence[int]]) -> Tensor:
    """Positions of each row as a mask (b, l)."""
    import torch

    mask = torch.zeros_like(like)
    for row, chosen in enumerate(positions):
        mask[row, torch.as_tensor(chosen, device=mask.device)] = True
    return mask


def _norm_ratios(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Norm of the first state of (b, l, d), and the largest norm of the row, each over the median
    norm of all but the first: (b,), (b,).
    """
    norms = states.float().norm(dim=-1)
    others = norms.masked_fill(~mask, float("nan"))[:, 1:]
    middle = others.nanquantile(0.5, dim=1) if others.shape[1] else norms[:, 0] * float("nan")
    return norms[:, 0] / middle, norms.masked_fill(~mask, 0).amax(dim=1) / middle


def _shares(hidden: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the first position in the mean over the span, and an even share: (b,), (b,)."""
    from llm2vec.pooling import mean_pool

    pooled = mean_pool(hidden, span)
    even = 1 / span.sum(1).float()
    along = (hidden[:, 0].float() * pooled).sum(-1) / (pooled * pooled).sum(-1)
    return along * even * span[:, 0], even


# --------------------------------------------------------------------------- measuring
def _pairs(encoder: LLM2Vec, lefts: Sequence[Left]) -> dict[Left, Measurement]:
    """Spearman correlation on the drawn pairs, one instruction or none for all of ``lefts``."""
    from llm2vec.sts_pairs import draw_pairs

    task = get_task(PAIRS.task)
    drawn = draw_pairs(task, PAIRS.split, PAIRS.items, SEED)
    instruction = format_instruction(task.instruction) if lefts[0].instruction else ""
    pooled = pool_without(encoder, [(instruction, text) for text in drawn.texts], lefts)
    whole = drawn.similarity(pooled.vectors[lefts[0]])
    found = {}
    for left in lefts:
        similarity = drawn.similarity(pooled.vectors[left])
        score, bounds = drawn.spearman(similarity)
        difference = drawn.difference(similarity, whole)
        found[left] = {
            "metric": task.metric,
            "score": score,
            "interval": (bounds.low, bounds.high),
            "scores": {
                "bootstrap": bounds.as_dict(),
                "difference": difference.score,
                "difference_interval": (difference.low, difference.high),
                "last_token_kept": pooled.kept[left],
                "first_position": pooled.sink.summary(),
            },
            "split": PAIRS.split,
            "n": len(drawn),
            "seeds": (SEED,),
            "dataset": drawn.source.as_dict(),
            "cost": pooled.cost,
        }
    return found


def _triples(encoder: LLM2Vec, lefts: Sequence[Left]) -> dict[Left, Measurement]:
    """The gap of the leakage triples; its difference is to that of the whole beginning."""
    triples = leakage.load_triples()
    cosines = leakage.cosines_without_first(
        encoder.backbone, encoder.tokenizer, triples.triples, [left.first for left in lefts],
        limit=encoder.max_length,
    )  # fmt: skip
    found = {}
    for left, one in zip(lefts, cosines, strict=True):
        leakage.check_cosines(one, encoder.variant)
        gained = (one.positive - one.negative) - (cosines[0].positive - cosines[0].negative)
        values = leakage.summarise(one)
        values["scores"] |= {
            "difference": float(gained.mean()),
            "difference_interval": mean_interval(gained),
        }
        found[left] = values | {
            "metric": "ranking_accuracy", "split": "all", "n": len(one.ids),
            "dataset": triples.source, "cost": one.cost,
        }  # fmt: skip
    return found


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
