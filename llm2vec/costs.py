"""What a job of the grid will cost: tokens, seconds, memory, a limit. Estimates, from records.

Tokens of a task are those that its records counted, else its characters (``task_sizes.csv``) by
four. Seconds follow from operations: two per parameter and token forwards, six in training; how
many a second, the records say (CPU), or a constant does where none was made on a GPU. Good to a
factor of two or three; the walltime limit leaves room for more. Imports no torch.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from llm2vec.paths import RESOURCES
from llm2vec.registry import (
    MNTP,
    MODELS,
    PROBE,
    TEXT_MAX_LENGTH,
    VARIANTS,
    Model,
    SimCSE,
    Task,
    Variant,
)

CPU_FLOPS, GPU_FLOPS = 6e10, 1e14  # where no record says: two busy cores; an A100 in bfloat16
CHARACTERS, INSTRUCTION = 4.2, 18  # per token; tokens of an instruction
CONLL_TOKENS, SENTENCE = 440_000, 35  # all splits; one of the SimCSE sentences
UNKNOWN_TASK = 5_000  # tokens, where neither a record nor the table knows the task
START, SCORING, PROBE_STEP = 40.0, 3.0, 0.006  # seconds: load a model, score a task, one step
BIG = 1e9  # parameters from which a job asks for a GPU
CHECKPOINTING = 2e9  # parameters from which training recomputes activations


@dataclass(frozen=True)
class Cost:
    """``seconds`` of wall-clock time, ``tokens`` through the backbone, padding apart."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Resources:
    """What a scheduler is asked for. ``minutes``: the limit after which a job is stopped."""

    gpus: int
    mem_mb: int
    minutes: int


def resources_of(model: Model, cost: Cost, *, training: bool = False, tasks: int = 0) -> Resources:
    """By the size of the model: twice its weights to train; large corpora need room as well."""
    weights = model.parameters * (4 if model.dtype == "float32" else 2) / 2**20
    mem = 2 * weights + 4000 if training else 1.3 * weights + 3000
    mem += 16_000 if tasks > 15 else 0
    limit = max(60, 6 * cost.seconds / 60)
    return Resources(int(model.parameters >= BIG), int(round(mem, -2)), round(limit))


@dataclass
class Costs:
    """Estimates, informed by the records below ``results``; ``gpu``: large models run on one."""

    results: Path
    gpu: bool = False

    # ----------------------------------------------------------------- what records say
    def _records(self) -> Iterator[dict[str, Any]]:
        for path in (self.results / "raw").rglob("*.json"):
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                if values["cost"]["tokens"] > 0 and values["model"] in MODELS:
                    yield values
            except (OSError, ValueError, KeyError, TypeError):  # whoever reads it for good says so
                continue

    @cached_property
    def _measured(self) -> tuple[dict[str, float], dict[bool, float]]:
        """Tokens of one pass over each task, and operations per second without and with a GPU."""
        tokens: dict[str, list[float]] = defaultdict(list)
        speeds: dict[bool, list[float]] = defaultdict(list)
        for record in self._records():
            cost, on_gpu = record["cost"], "cuda" in str(record["provenance"].get("device"))
            variant = VARIANTS.get(record["variant"])
            poolings = int(cost.get("poolings_sharing", 1))
            passes = passes_of(variant, poolings) if variant else 1
            tokens[record["task"]].append(cost["tokens"] / passes)
            if cost.get("tokens_per_second", 0) > 0:
                flops = 2 * MODELS[record["model"]].parameters * cost["tokens_per_second"]
                speeds[on_gpu].append(flops)
        return {k: median(v) for k, v in tokens.items()}, {k: median(v) for k, v in speeds.items()}

    @cached_property
    def _sizes(self) -> dict[str, dict[str, float]]:
        with open(RESOURCES / "task_sizes.csv", newline="", encoding="utf-8") as handle:
            return {
                row.pop("task"): {k: float(v) for k, v in row.items()}
                for row in csv.DictReader(handle)
            }

    def _seconds(self, model: Model, tokens: float, factor: float = 1) -> float:
        on_gpu = self.gpu and model.parameters >= BIG
        known = self._measured[1]
        speed = known.get(on_gpu, GPU_FLOPS if on_gpu else CPU_FLOPS)
        return 2 * factor * model.parameters * tokens / speed

    # ----------------------------------------------------------------- estimates
    def task_tokens(self, task: Task) -> float:
        """Tokens of one pass over a sentence-level task."""
        if task.name in self._measured[0]:
            return self._measured[0][task.name]
        if task.name in self._sizes:
            size = self._sizes[task.name]
            text = min(size["characters"] / CHARACTERS, size["texts"] * TEXT_MAX_LENGTH)
            return text + size["instructed"] * INSTRUCTION
        return UNKNOWN_TASK

    def tasks(self, model: Model, variant: Variant, tasks: Sequence[Task], poolings: int) -> Cost:
        """Sentence-level tasks of one variant, all poolings from shared passes."""
        tokens = sum(map(self.task_tokens, tasks)) * passes_of(variant, poolings)
        seconds = self._seconds(model, tokens) + SCORING * len(tasks) * poolings + START
        return Cost(round(tokens), seconds)

    def words(self, model: Model, measurements: int) -> Cost:
        """One pass over CoNLL-2003 and the probes of so many (task, alignment) pairs."""
        steps = measurements * len(PROBE.seeds) * PROBE.steps
        probes = steps * PROBE_STEP * max(1, model.hidden_size / 600)
        return Cost(CONLL_TOKENS, self._seconds(model, CONLL_TOKENS) + probes + START)

    def analysis(self, model: Model, task: str, passes: int = 1) -> Cost:
        """Pooling leakage (``triples``) or layer similarity (``wikipedia``)."""
        tokens = passes * self._measured[0].get(task, 7_000)
        return Cost(round(tokens), self._seconds(model, tokens) + START)

    def training(self, model: Model, settings: MNTP | SimCSE) -> Cost:
        """One stage; SimCSE runs its forward passes twice to save memory."""
        if isinstance(settings, MNTP):
            tokens, factor = settings.steps * settings.batch_size * settings.block_size, 3
        else:
            tokens, factor = settings.steps * settings.batch_size * 2 * SENTENCE, 4
        factor += model.parameters > CHECKPOINTING
        return Cost(tokens, self._seconds(model, tokens, factor) + START)


def passes_of(variant: Variant, poolings: int) -> int:
    """Passes over a text: a bidirectional ``eos`` needs its own, echo shows a text twice."""
    if variant.echo:
        return 2
    return 2 if variant.attention == "bidirectional" and poolings > 1 else 1
