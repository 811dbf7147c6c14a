"""What a run will cost before it starts: tokens, seconds, memory, disk. Imports no torch.

Tokens of a task come, in this order, from committed records of the same model, from records of
another model of its kind, from the size of the task's texts (``resources/task_sizes.csv``), or are
unknown; :attr:`Tokens.basis` says which. Seconds come from the speed of recorded passes in the
dtype asked for, else from the arithmetic of a forward pass. Every figure is a guide, not a promise.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

from llm2vec.inputs import forward_passes
from llm2vec.paths import RESOURCES
from llm2vec.registry import (
    POOLINGS,
    TEXT_MAX_LENGTH,
    VARIANTS,
    Model,
    Task,
    Variant,
    get_model,
)
from llm2vec.results import Record

CHARACTERS = 4.2  # per token
GPU_FLOPS = 1e14  # where no record says: an A100 in bfloat16
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "bfloat16-mixed": 2}
BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16_384  # llm2vec.batching: MAX_TOKENS, GPU_TOKENS
ALIKE = 4  # times the parameters: a smaller model leaves a GPU waiting, its speed says nothing
WIDTHS_ALIVE = 16  # hidden widths that one token holds at the peak of a block (MLP, attention)
RUNTIME = 1.5e9  # Python, torch, tokenizer, data frames
CUDA_CONTEXT = 1e9
CANDIDATE = 400  # bytes: measured over 360,000 of a reranking, in heaps, results and predictions
_MTEB = ("mteb_subset", "mteb_full")
_SENTENCES = (*_MTEB, "offline_suite")


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
def _sizes() -> dict[str, tuple[int, ...]]:
    """Numbers of each task of MTEB(eng, v1), as ``task_sizes.csv`` has them."""
    with open(RESOURCES / "task_sizes.csv", newline="", encoding="utf-8") as handle:
        return {name: tuple(map(int, numbers)) for name, *numbers in list(csv.reader(handle))[1:]}


@cache
def task_sizes() -> dict[str, tuple[int, int, int]]:
    """(texts, characters, texts with the instruction) of each task of MTEB(eng, v1)."""
    return {name: numbers[:3] for name, numbers in _sizes().items()}


@cache
def held_in_memory() -> dict[str, tuple[int, int]]:
    """(vectors, candidates of reranking) that scoring a task of MTEB(eng, v1) holds together."""
    return {name: numbers[3:] for name, numbers in _sizes().items()}


# --------------------------------------------------------------------------- runs behind records
@dataclass(frozen=True)
class Run:
    """Records of one task whose poolings shared their forward passes, and so their cost.

    ``poolings``: all that were run, those without a record here included; None where their number
    alone is known.
    """

    records: tuple[Record, ...]
    poolings: frozenset[str] | None

    @property
    def tokens(self) -> float:
        return max(float(record.cost.get("tokens", 0)) for record in self.records)

    @property
    def seconds(self) -> float:
        """Of the passes, scoring apart; 0 where no record says."""
        return max(map(_encoding, self.records))

    @property
    def per_pass(self) -> float:
        """Tokens of one pass, EOS apart; 0 where it cannot be known."""
        if self.poolings is None:
            return 0.0
        return self.tokens / passes(VARIANTS[self.records[0].variant], self.poolings)


def _encoding(record: Record) -> float:
    cost = record.cost
    speed = cost.get("tokens_per_second") or float("inf")
    return float(cost.get("encoding_seconds", cost.get("tokens", 0) / speed))


def origin_of(record: Record) -> tuple[str, ...]:
    """What the records of one run have in common: the passes began once, by one command."""
    names = ("commit", "started", "command", "device")
    return tuple(str(record.provenance.get(name)) for name in names)


def runs_of(records: Iterable[Record]) -> list[Run]:
    """The runs behind the records of sentence-level tasks, each once."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.experiment in _SENTENCES:
            sharing = record.cost.get("poolings_sharing")
            alone = record.pooling if sharing == 1 else sharing
            place = (record.experiment, record.model, record.variant, record.task, record.setting)
            groups.setdefault((*place, alone, *origin_of(record)), []).append(record)
    return [Run(tuple(members), _poolings(members)) for members in groups.values()]


def _poolings(members: Sequence[Record]) -> frozenset[str] | None:
    known = frozenset(record.pooling for record in members)
    number = int(members[0].cost.get("poolings_sharing", len(known)))
    if number == len(known):
        return known
    return frozenset(POOLINGS) if number == len(POOLINGS) else None


# --------------------------------------------------------------------------- tokens
def passes(variant: Variant, poolings: Collection[str]) -> int:
    """Times that a text goes through; Echo shows it twice in each forward pass.

    EOS itself, a token more in a pass, is not counted.
    """
    return (2 if variant.echo else 1) * len(forward_passes(variant, poolings))


def passes_of(variant: Variant, poolings: int) -> int:
    """:func:`passes` for one pooling, or for all of them."""
    return passes(variant, POOLINGS if poolings > 1 else POOLINGS[:1])


def tokens_of(
    task: Task, model: Model, variant: Variant, poolings: Sequence[str], records: Iterable[Record]
) -> Tokens:
    """Estimate of the tokens that go through the model for one task."""
    times = passes(variant, poolings)
    found: dict[str, list[float]] = {"this": [], "model": [], "other": []}
    for run in runs_of(record for record in records if record.task == task.name):
        ran, each = VARIANTS[run.records[0].variant], run.per_pass
        if not each or (ran.attention == "own") != (variant.attention == "own"):
            continue
        same = run.records[0].model == model.name
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
def speeds(model: Model, records: Iterable[Record], dtype: str | None = None) -> dict[str, Speed]:
    """Tokens per second by device: measured for this model, else scaled by parameters.

    ``dtype``: of the run to come; the registry's where none is given. There is always a speed for
    a GPU: arithmetic (two operations a parameter and token) where no record of a model of like
    size has been made on one.
    """
    measured: dict[str, dict[str, list[Run]]] = {}
    for run in runs_of(records):
        first = run.records[0]
        if run.tokens and run.seconds:
            device = str(first.provenance["device"]).split(":")[0]
            measured.setdefault(device, {}).setdefault(first.model, []).append(run)
    out = {}
    for device, by_model in measured.items():
        own = model.name in by_model
        name = model.name if own else min(
            by_model, key=lambda m: abs(get_model(m).parameters - model.parameters)
        )  # fmt: skip
        factor = get_model(name).parameters / model.parameters
        if not own and device == "cuda" and not 1 / ALIKE <= factor <= ALIKE:
            continue
        speed, remark = _speed(by_model[name], dtype or model.dtype, get_model(name).dtype)
        basis = f"records of this model{remark}"
        if not own:
            basis = f"records of {name}{remark}, scaled by parameters"
        out[device] = Speed(speed * factor, basis)
    if "cuda" not in out:
        out["cuda"] = Speed(GPU_FLOPS / (2 * model.parameters), "at best: arithmetic for an A100")
    return out


def _speed(runs: Sequence[Run], dtype: str, default: str) -> tuple[float, str]:
    """Tokens per second over all passes of the best records, and a remark where dtypes differ.

    Another dtype has another speed, and the short texts of the offline suite have a lower one.
    """
    by_dtype: dict[str, list[Run]] = {}
    for run in runs:
        by_dtype.setdefault(str(run.records[0].provenance["dtype"]), []).append(run)
    used = next((name for name in (dtype, default) if name in by_dtype), min(by_dtype))
    alike = by_dtype[used]
    chosen = [run for run in alike if run.records[0].experiment in _MTEB] or alike
    speed = sum(run.tokens for run in chosen) / sum(run.seconds for run in chosen)
    return speed, "" if used == dtype else f" in {used}"


# --------------------------------------------------------------------------- memory and disk
def weights_bytes(model: Model, dtype: str) -> float:
    return model.parameters * BYTES[dtype]


def gpu_bytes(model: Model, dtype: str) -> float:
    """Peak memory on a GPU: weights, one batch's activations, the context."""
    activations = GPU_BATCH_TOKENS * model.hidden_size * WIDTHS_ALIVE * BYTES[dtype]
    return weights_bytes(model, dtype) + activations + CUDA_CONTEXT


def host_bytes(model: Model, dtype: str, tasks: Iterable[Task]) -> float:
    """Peak memory of the host: weights (all of it on a CPU, while loading for a GPU), scoring.

    Scoring the largest task takes its texts, its vectors and mteb's normalized copy of them, and
    what mteb notes of each candidate that is ranked.
    """
    activations = BATCH_TOKENS * model.hidden_size * WIDTHS_ALIVE * BYTES[dtype]
    scoring = max((_scoring_bytes(model, task) for task in tasks), default=0.0)
    return weights_bytes(model, dtype) + activations + scoring + RUNTIME


def _scoring_bytes(model: Model, task: Task) -> float:
    characters = task_sizes().get(task.name, (0, 0, 0))[1]
    rows, candidates = held_in_memory().get(task.name, (0, 0))
    return 2.0 * characters + 2 * rows * model.hidden_size * 4 + candidates * CANDIDATE


def vectors_bytes(model: Model, poolings: Sequence[str], tasks: Iterable[Task]) -> float:
    """Disk that the pooled vectors of the largest task take until it is scored."""
    texts = max((task_sizes().get(t.name, (0, 0, 0))[0] for t in tasks), default=0)
    return texts * model.hidden_size * 4.0 * len(poolings)
