"""What a job of the grid will cost: tokens, seconds, memory, a limit. Estimates, from records.

Tokens of a task and the speed of a machine are those of :mod:`llm2vec.estimates`, so the plan of a
run and ``make doctor`` agree. Training counts as three forward passes, four with recomputed
activations. Good to a factor of two or three; the walltime limit leaves room for more. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from statistics import median

from llm2vec import estimates
from llm2vec.errors import RecordError, SettingError
from llm2vec.registry import MNTP, MODELS, PROBE, VARIANTS, Model, SimCSE, Task, Variant
from llm2vec.registry_grid import HOURS
from llm2vec.results import Record, read_record

CPU_FLOPS = 6e10  # where no record says: two busy cores
CONLL_TOKENS, SENTENCE = 440_000, 35  # all splits; one of the SimCSE sentences
UNKNOWN_TASK = 5_000  # tokens, where neither a record nor the table knows the task
ANALYSIS_TOKENS = 7_000  # the triples, or the paragraphs, once
START, SCORING, PROBE_STEP = 40.0, 3.0, 0.006  # seconds: load a model, score a task, one step
BIG = 1e9  # parameters from which a job asks for a GPU
GRACE = 5  # minutes between our limit and the scheduler's
CHECKPOINTING = 2e9  # parameters from which training recomputes activations


@dataclass(frozen=True)
class Cost:
    """``seconds`` of wall-clock time, ``tokens`` through the backbone, padding apart."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Resources:
    """What a scheduler is asked for.

    ``minutes``: what a job should never need, its limit at the first attempt. ``longest``: minutes
    that the scheduler gives to any attempt, None where nothing limits them.
    """

    gpus: int
    mem_mb: int
    minutes: int
    longest: int | None = None

    def limit(self, attempt: int) -> int:
        """Minutes after which an attempt is stopped; a later one gets more, up to the longest."""
        most = self.minutes * attempt
        return most if self.longest is None else max(1, min(most, self.longest - GRACE))

    def walltime(self, attempt: int) -> int:
        """Minutes that the scheduler is asked for: enough to stop the attempt ourselves."""
        return self.limit(attempt) + GRACE


def resources_of(
    model: Model,
    cost: Cost,
    *,
    training: bool = False,
    host: float = 0.0,
    gpus: int = 1,
    longest: int | None = None,
) -> Resources:
    """By the size of the model: twice its weights to train; scoring some tasks takes more.

    ``host``: bytes of it (:func:`llm2vec.estimates.host_bytes`). ``gpus``: of a model that asks for
    one, each with a copy of its weights on the way there.
    """
    weights = model.parameters * (4 if model.dtype == "float32" else 2) / 2**20
    mem = 2 * weights + 4000 if training else 1.3 * weights * gpus + 3000
    mem = max(mem, 1.1 * host / 2**20)
    limit = max(60, 6 * cost.seconds / 60)
    return Resources(
        gpus if model.parameters >= BIG else 0, int(round(mem, -2)), round(limit), longest
    )


def longest_of(profile: Path, hours: float | None = None) -> int | None:
    """Minutes that a profile's scheduler gives a job; None where the machine is the user's own.

    ``hours``: None for the registry's. Raises :class:`SettingError` for less than one.
    """
    hours = HOURS if hours is None else hours
    if not 1 <= hours < inf:
        raise SettingError(f"{hours:g} hours for a job? It must be 1 or more.")
    text = (profile / "config.yaml").read_text(encoding="utf-8")
    return None if "executor: local" in text else round(60 * hours)


def limits(asked: Sequence[Resources]) -> list[str]:
    """A line that says for how long a scheduler is asked; none where nothing limits the jobs."""
    times = [resources.walltime(1) for resources in asked]
    longest = max((resources.longest or 0 for resources in asked), default=0)
    if not longest:
        return []
    least, most, ever = (f"{minutes / 60:.3g} h" for minutes in (min(times), max(times), longest))
    return [f"Walltime asked for: {least} to {most} a job, never above {ever} (HOURS=)."]


@dataclass
class Costs:
    """Estimates, informed by the records below ``results``; ``gpu``: large models run on one."""

    results: Path
    gpu: bool = False

    @cached_property
    def records(self) -> list[Record]:
        """Every record that can be read; whoever reads a damaged one for good says so."""
        found = []
        for path in sorted((self.results / "raw").rglob("*.json")):
            try:
                record = read_record(path)
            except RecordError:
                continue
            if record.model in MODELS:
                found.append(record)
        return found

    def _seconds(self, model: Model, tokens: float, factor: float = 1) -> float:
        device = "cuda" if self.gpu and model.parameters >= BIG else "cpu"
        known = estimates.speeds(model, self.records).get(device)
        speed = known.tokens_per_second if known else CPU_FLOPS / (2 * model.parameters)
        return factor * tokens / speed

    # ----------------------------------------------------------------- estimates
    def tasks(
        self, model: Model, variant: Variant, tasks: Sequence[Task], poolings: Sequence[str]
    ) -> Cost:
        """Sentence-level tasks of one variant, all poolings from shared passes."""
        return self.measurements(model, variant, [(task, poolings) for task in tasks])

    def measurements(
        self, model: Model, variant: Variant, wanted: Iterable[tuple[Task, Sequence[str]]]
    ) -> Cost:
        """As :meth:`tasks`, each task with poolings of its own; the model is loaded once."""
        tokens = scores = 0
        for task, poolings in wanted:
            count = estimates.tokens_of(task, model, variant, poolings, self.records).count
            tokens += UNKNOWN_TASK if count is None else count
            scores += len(poolings)
        return Cost(tokens, self._seconds(model, tokens) + SCORING * scores + START)

    def words(self, model: Model, measurements: int) -> Cost:
        """One pass over CoNLL-2003 and the probes of so many (task, alignment) pairs."""
        steps = measurements * len(PROBE.seeds) * PROBE.steps
        probes = steps * PROBE_STEP * max(1, model.hidden_size / 600)
        return Cost(CONLL_TOKENS, self._seconds(model, CONLL_TOKENS) + probes + START)

    def analysis(self, model: Model, task: str, passes: int = 1) -> Cost:
        """Pooling leakage (``triples``) or layer similarity (``wikipedia``)."""
        once = [
            record.cost.get("tokens", 0) / estimates.passes_of(VARIANTS[record.variant], 1)
            for record in self.records
            if record.task == task and record.variant in VARIANTS
        ]
        tokens = passes * (median(once) if once else ANALYSIS_TOKENS)
        return Cost(round(tokens), self._seconds(model, tokens) + START)

    def training(self, model: Model, settings: MNTP | SimCSE) -> Cost:
        """One stage; SimCSE runs its forward passes twice to save memory."""
        if isinstance(settings, MNTP):
            tokens, factor = settings.steps * settings.batch_size * settings.block_size, 3
        else:
            tokens, factor = settings.steps * settings.batch_size * 2 * SENTENCE, 4
        factor += model.parameters > CHECKPOINTING
        return Cost(tokens, self._seconds(model, tokens, factor) + START)
