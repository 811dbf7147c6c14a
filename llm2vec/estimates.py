"""What a run will cost before it starts: tokens, seconds, memory, disk. Imports no torch.

Tokens of a task come, in this order, from committed records of the same model, from records of
another model of its kind, from the size of the task's texts (``resources/task_sizes.csv``), or are
unknown; :attr:`Tokens.basis` says which. Seconds come from the speed that records state, else from
the arithmetic of a forward pass. Every figure is a guide, not a promise.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

from llm2vec.paths import RESOURCES
from llm2vec.registry import TEXT_MAX_LENGTH, VARIANTS, Model, Task, Variant, get_model
from llm2vec.results import Record

CHARACTERS = 4.2  # per token
GPU_FLOPS = 1e14  # where no record says: an A100 in bfloat16
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "bfloat16-mixed": 2}
BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16_384  # llm2vec.batching: MAX_TOKENS, GPU_TOKENS
ALIKE = 4  # times the parameters: a smaller model leaves a GPU waiting, its speed says nothing
WIDTHS_ALIVE = 16  # hidden widths that one token holds at the peak of a block (MLP, attention)
RUNTIME = 1.5e9  # Python, torch, tokenizer, data frames
CUDA_CONTEXT = 1e9
_SENTENCES = ("mteb_subset", "mteb_full", "offline_suite")


@dataclass(frozen=True)
class Tokens:
    """Tokens of a task through one variant for all poolings asked for, and what they rest on."""

    count: int | None
    basis: str


@dataclass(frozen=True)
class Speed:
    """Tokens per second and where the figure comes from."""

    tokens_per_second: float
    basis: str


@cache
def task_sizes() -> dict[str, tuple[int, int, int]]:
    """(texts, characters, texts with the instruction) of each task of MTEB(eng, v1)."""
    with open(RESOURCES / "task_sizes.csv", newline="", encoding="utf-8") as handle:
        return {
            row["task"]: (int(row["texts"]), int(row["characters"]), int(row["instructed"]))
            for row in csv.DictReader(handle)
        }


# --------------------------------------------------------------------------- tokens
def passes_of(variant: Variant, poolings: int) -> int:
    """Passes over a text: a bidirectional ``eos`` needs its own, echo shows a text twice."""
    if variant.echo:
        return 2
    return 2 if variant.attention == "bidirectional" and poolings > 1 else 1


def per_pass(record: Record) -> float:
    """Tokens of one pass over a recorded task."""
    poolings = int(record.cost.get("poolings_sharing", 1))
    variant = VARIANTS.get(record.variant)
    return record.cost.get("tokens", 0) / (passes_of(variant, poolings) if variant else 1)


def tokens_of(
    task: Task, model: Model, variant: Variant, poolings: Sequence[str], records: Iterable[Record]
) -> Tokens:
    """Estimate of the tokens that go through the model for one task."""
    times = passes_of(variant, len(poolings))
    found: dict[str, list[float]] = {"this": [], "model": [], "other": []}
    for record in records:
        if record.experiment not in _SENTENCES or record.task != task.name:
            continue
        ran, each = VARIANTS[record.variant], per_pass(record)
        if not each or (ran.attention == "own") != (variant.attention == "own"):
            continue
        same = record.model == model.name
        found["this" if same and ran == variant else "model" if same else "other"].append(each)
    for kind, basis in (
        ("this", "records of this variant"),
        ("model", "records of other variants"),
        ("other", "records of other models"),
    ):
        if found[kind]:
            return Tokens(round(times * median(found[kind])), basis)
    if task.name not in task_sizes():
        return Tokens(None, "unknown")
    return Tokens(round(times * _from_texts(task, variant)), "size of the texts")


def _from_texts(task: Task, variant: Variant) -> float:
    texts, characters, instructed = task_sizes()[task.name]
    each = min(characters / texts / CHARACTERS, TEXT_MAX_LENGTH)
    text = texts * each
    if variant.attention == "own":
        return text
    return text + instructed * len(task.instruction) / CHARACTERS


# --------------------------------------------------------------------------- time
def speeds(model: Model, records: Iterable[Record]) -> dict[str, Speed]:
    """Tokens per second by device: measured for this model, else scaled by parameters.

    There is always one for a GPU: arithmetic (two operations a parameter and token) where no
    record of a model of like size has been made on one.
    """
    measured: dict[str, dict[str, list[float]]] = {}
    for record in records:
        speed = record.cost.get("tokens_per_second")
        if record.experiment in _SENTENCES and speed:
            device = str(record.provenance["device"]).split(":")[0]
            measured.setdefault(device, {}).setdefault(record.model, []).append(speed)
    out = {}
    for device, by_model in measured.items():
        if model.name in by_model:
            out[device] = Speed(median(by_model[model.name]), "records of this model")
        else:
            nearest = min(by_model, key=lambda m: abs(get_model(m).parameters - model.parameters))
            factor = get_model(nearest).parameters / model.parameters
            if device == "cuda" and not 1 / ALIKE <= factor <= ALIKE:
                continue
            out[device] = Speed(
                median(by_model[nearest]) * factor, f"records of {nearest}, scaled by parameters"
            )
    if "cuda" not in out:
        out["cuda"] = Speed(GPU_FLOPS / (2 * model.parameters), "at best: arithmetic for an A100")
    return out


# --------------------------------------------------------------------------- memory and disk
def weights_bytes(model: Model, dtype: str) -> float:
    return model.parameters * BYTES[dtype]


def gpu_bytes(model: Model, dtype: str) -> float:
    """Peak memory on a GPU: weights, one batch's activations, the context."""
    activations = GPU_BATCH_TOKENS * model.hidden_size * WIDTHS_ALIVE * BYTES[dtype]
    return weights_bytes(model, dtype) + activations + CUDA_CONTEXT


def host_bytes(model: Model, dtype: str, tasks: Iterable[Task]) -> float:
    """Peak memory of the host: weights (all of it on a CPU, while loading for a GPU), texts."""
    activations = BATCH_TOKENS * model.hidden_size * WIDTHS_ALIVE * BYTES[dtype]
    texts = max((2 * task_sizes().get(t.name, (0, 0, 0))[1] for t in tasks), default=0)
    return weights_bytes(model, dtype) + activations + texts + RUNTIME


def vectors_bytes(model: Model, poolings: Sequence[str], tasks: Iterable[Task]) -> float:
    """Disk that the pooled vectors of the largest task take until it is scored."""
    texts = max((task_sizes().get(t.name, (0, 0, 0))[0] for t in tasks), default=0)
    return texts * model.hidden_size * 4.0 * len(poolings)
