"""Sentence-level experiments: a model and variant over tasks, one record per pooling.

Used by experiments/04_mteb_subset.py and 05_mteb_full.py (paper 3.2, Tables 1 and 5). The backbone
is loaded at most once, and only if a record is missing: done means a valid record whose
hyperparameter and adapter hashes, and whose data, are those of a run made now. Each record is
written as soon as its task is scored; an interrupted run loses at most the part of it in hand,
unless the code or the device has changed: then the task is encoded anew. A task that fails costs
no other task: it is named at once and again at the end.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.adapters import adapter_hashes
from llm2vec.code_digest import code_digest
from llm2vec.errors import DataError, LLM2VecError, SettingError, UnknownNameError
from llm2vec.hub import reason
from llm2vec.parallel import ParallelEncoder, split_devices
from llm2vec.paths import cache_dir
from llm2vec.provenance import Provenance, capture_provenance, git_state
from llm2vec.registry import (
    ADAPTER_SOURCES,
    DTYPES,
    POOLINGS,
    SUITES,
    TEXT_MAX_LENGTH,
    Model,
    Task,
    Variant,
    get_model,
    get_pooling,
    get_suite,
    get_task,
    get_variant,
    variants_of,
)
from llm2vec.registry_offline import OFFLINE_REVISIONS
from llm2vec.results import NONE, Key, Record, hash_of, is_done, read_record, write_record

if TYPE_CHECKING:
    from llm2vec.vectors import Vectors


@dataclass(frozen=True)
class Run:
    """One model and variant of a suite: what will be measured, and where the records go."""

    model: Model
    variant: Variant
    suite: str
    poolings: tuple[str, ...]
    tasks: tuple[Task, ...]
    results: Path
    dtype: str
    adapters: str = "own"

    def key(self, task: Task, pooling: str) -> Key:
        marks = [self.dtype] if self.dtype != self.model.dtype else []
        marks += [self.adapters] if self.adapters != "own" and self.variant.stages else []
        return Key(
            experiment_of(self.suite), self.model.name, self.variant.name, pooling, task.name,
            "-".join(marks) or None,
        )  # fmt: skip


def experiment_of(suite: str) -> str:
    """Experiment whose folder a suite's records go to."""
    return {"offline": "offline_suite", "full": "mteb_full"}.get(suite, "mteb_subset")


class TasksError(LLM2VecError):
    """Tasks that failed while the others of the run were measured."""

    exit_code = 1  # the same command may well succeed

    def __init__(self, failed: Mapping[str, Exception]) -> None:
        self.tasks = tuple(failed)
        reasons = "; ".join(f"{task} ({_reason(error)})" for task, error in failed.items())
        super().__init__(
            f"failed: {reasons}. What is measured is kept; the same command goes on with the rest."
        )


def _reason(error: Exception) -> str:
    """An error in one line; ours say what happened by themselves."""
    return str(error) if isinstance(error, LLM2VecError) else reason(error)


def plan(
    model: str,
    variant: str,
    suite: str,
    results: Path,
    *,
    task: str | None = None,
    pooling: str | None = None,
    dtype: str | None = None,
    adapters: str = "own",
) -> Run:
    """Check every name before anything is loaded; errors list the valid ones."""
    spec, kind = get_model(model), get_variant(variant)
    if kind.name not in variants_of(spec):
        raise SettingError(
            f"{model} has no variant {variant!r}. Valid: {', '.join(variants_of(spec))}."
        )
    own = kind.attention == "own"
    if own and pooling not in (None, NONE):
        raise SettingError(f"{model} keeps its own pooling; leave --pooling out.")
    names = get_suite(suite)
    if task is not None:
        names = (get_task(task).name,)
        if task not in SUITES[suite]:
            raise SettingError(f"{task} is not in the suite {suite}: {', '.join(SUITES[suite])}.")
    poolings = (NONE,) if own else POOLINGS if pooling is None else (get_pooling(pooling),)
    if adapters not in ADAPTER_SOURCES:
        raise UnknownNameError("source of adapters", adapters, ADAPTER_SOURCES)
    dtype = (dtype or spec.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    tasks = tuple(get_task(name) for name in names)
    return Run(spec, kind, suite, poolings, tasks, Path(results), dtype, adapters)


def hyperparameters(run: Run, task: Task, pooling: str) -> dict[str, Any]:
    """What decides a score besides adapters and code; its hash tells whether a record is done."""
    from llm2vec.assets import model_revision
    from llm2vec.prompts import format_instruction

    own = run.variant.attention == "own"
    return {
        "pooling": run.model.own_pooling if own else pooling,
        "normalize": run.model.normalize,
        "instruction": "" if own else format_instruction(task.instruction),
        "chat": list(run.model.chat or ()),
        "max_length": run.model.max_length,
        "text_max_length": run.model.max_length if own else TEXT_MAX_LENGTH,
        "attention": run.variant.attention,
        "echo": run.variant.echo,
        "dtype": run.dtype,
        "dataset": task.dataset,
        "dataset_revision": task.revision,
        "model": run.model.hub_id,
        "model_revision": model_revision(run.model.asset)
        if run.model.asset
        else run.model.revision,
    }


def missing(run: Run) -> list[tuple[Task, list[str]]]:
    """Tasks with the poolings whose record is not there yet. Raises for a missing adapter."""
    return absent(run, adapter_hashes(run.model, run.variant, run.adapters))


def absent(run: Run, hashes: tuple[str, ...] | None) -> list[tuple[Task, list[str]]]:
    """Tasks with the poolings that have no record with these adapters (None: with any)."""
    todo = []
    for task in run.tasks:
        absent = [pooling for pooling in run.poolings if not _is_done(run, task, pooling, hashes)]
        if absent:
            todo.append((task, absent))
    return todo


def _is_done(run: Run, task: Task, pooling: str, hashes: tuple[str, ...] | None) -> bool:
    """Whether a record of this run, with the data that are pinned now, is there."""
    key = run.key(task, pooling)
    if not is_done(key, run.results, hyperparameters(run, task, pooling), hashes):
        return False
    pinned = OFFLINE_REVISIONS.get(task.name)  # in no hash: there it is 'built' for every revision
    return not pinned or read_record(key.path(run.results)).dataset["revision"] == pinned


def execute(run: Run, *, device: str | None = None, skip_missing_data: bool = False) -> int:
    """Measure what is missing and write the records; returns how many were written.

    ``device``: one, or several with commas (``cuda:all``: every GPU). ``skip_missing_data``: a
    task whose data cannot be had is named and left out instead of ending the run. Raises
    :class:`TasksError` after the last task when some failed; a mistake of the user's, which the
    next task would meet as well, ends the run at once.
    """
    git_state(), code_digest()  # of the code that runs now, whatever is edited during a long run
    todo = missing(run)
    title = f"{run.model.name} {run.variant.name}, suite {run.suite}"
    if not todo:
        _say(f"{title}: all {len(run.tasks)} tasks done before")
        return 0
    _say(f"{title}: {len(todo)} of {len(run.tasks)} tasks to measure")
    from llm2vec.vectors import VectorStoreError  # torch loads slowly: only now

    written = 0
    failed: dict[str, Exception] = {}
    with _encoder(run, device) as encoder:
        for task, poolings in todo:
            try:
                written += _measure(run, encoder, task, poolings)
            except DataError as error:
                if not skip_missing_data:
                    raise
                _say(f"  {task.name}: left out, {error}")
            except Exception as error:
                if isinstance(error, LLM2VecError) and not isinstance(error, VectorStoreError):
                    raise
                traceback.clear_frames(error.__traceback__)  # they hold the task's vectors
                failed[task.name] = error
                _say(f"  {task.name}: failed, {_reason(error)}")
    if failed:
        raise TasksError(failed) from ExceptionGroup("tasks that failed", list(failed.values()))
    return written


@contextmanager
def _encoder(run: Run, device: str | None) -> Iterator[Any]:
    """The run's encoder; for several devices (``cuda:0,cuda:1``) one that spans them."""
    from llm2vec.encoder import load_encoder

    load = partial(
        load_encoder, run.model.name, run.variant.name, adapters=run.adapters, dtype=run.dtype
    )
    devices = split_devices(device)
    if len(devices) > 1:
        with ParallelEncoder(load, devices) as encoder:
            yield encoder
    else:
        yield load(device=devices[0] if devices else None)


def _measure(run: Run, encoder: Any, task: Task, poolings: Sequence[str]) -> int:
    """Score one task for all its missing poolings, then write the records."""
    from llm2vec.mteb_tasks import evaluate_task

    origin = capture_provenance(str(encoder.device), run.dtype, encoder.attention_implementation)
    vectors = _vectors(run, task, poolings, encoder, origin)
    evaluations, source = evaluate_task(vectors, task)
    for done in evaluations:
        settings = hyperparameters(run, task, done.pooling)
        key = run.key(task, done.pooling)
        bounds = done.interval
        record = Record(
            **asdict(key),
            metric=task.metric,
            score=done.score,
            scores=done.scores | {"bootstrap": bounds and bounds.as_dict()},
            interval=bounds and (bounds.low, bounds.high),
            split=task.split,
            subset=task.subset,
            n=done.n,
            seeds=(done.seed,),
            model_revision=settings["model_revision"],
            adapters=encoder.adapters,
            dataset=source.as_dict(),
            hyperparameters=settings,
            provenance=origin.as_dict(),
            cost=done.cost,
        )
        write_record(record, run.results)
        seconds = done.cost["seconds"]
        _say(f"  {task.name:<32} {done.pooling:<14} {100 * done.score:6.2f}  {seconds:6.1f} s")
    vectors.discard()
    return len(evaluations)


def _vectors(
    run: Run, task: Task, poolings: Sequence[str], encoder: Any, origin: Provenance
) -> Vectors:
    """A task's vectors; those that other code left of the same run are deleted.

    The record names the code, libraries and device of this process, so all its vectors must be
    theirs. Which processor, or which GPU, is left open: that decides rounding alone.
    """
    from llm2vec.vectors import Vectors, drop_stale

    name = _vectors_name(run, task, encoder.adapters)
    folder = cache_dir() / "vectors" / f"{name}-{hash_of(_state(origin))}"
    drop_stale(folder, name)
    return Vectors(encoder, poolings, folder, sys.stderr.isatty())


def _vectors_name(run: Run, task: Task, adapters: tuple[str, ...]) -> str:
    """Where a task's vectors wait to be scored; other settings, adapters or results, another one.

    A run that makes records again elsewhere must not find the vectors of the first one.
    """
    settings = hyperparameters(run, task, "any")
    settings |= {"task": task.name, "adapters": list(adapters)}
    settings |= {"results": str(run.results.resolve())}
    return f"{run.model.name}-{run.variant.name}-{hash_of(settings)}"


def _state(origin: Provenance) -> dict[str, Any]:
    """What decides a vector besides the settings, and may change while a task is interrupted."""
    return {
        "code": code_digest(),
        "torch": origin.versions["torch"],
        "transformers": origin.versions["transformers"],
        "devices": sorted({device.partition(":")[0] for device in origin.device.split(",")}),
        "attention": origin.attention_implementation,
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
