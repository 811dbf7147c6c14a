"""Is a record what it says? Everything about it that can be checked without measuring again.

Schema and hyperparameter hash (:func:`~llm2vec.results.read_record`), a clean commit, a command
whose script this repository has, adapters that are those at hand; and its numbers: a score stands
in more than one place of a record, or can be had from the arrays beside it, and metric, split,
subset and the status of mirrored data are written down elsewhere, too. Used by
:mod:`llm2vec.verify` and by the tests of the committed records. Imports no torch.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from llm2vec import attention_sink, layers, leakage, mirror_report, paths, word_evaluation
from llm2vec.adapters import ADAPTER_WEIGHTS, WORDS_STAGE, published_adapters, stages_of
from llm2vec.errors import AdapterError, RecordError
from llm2vec.evaluation import experiment_of
from llm2vec.paths import ROOT
from llm2vec.registry import ADAPTER_SOURCES, MODELS, SUITES, TASKS, VARIANTS
from llm2vec.registry_ablations import ABLATIONS, WIKITEXT
from llm2vec.registry_sink import PAIRS
from llm2vec.results import Record, read_record, sha256_file

UNKNOWN = "not recorded"
SAME = 1e-9  # another release of numpy may add up in another order
ROUNDED = 6e-6  # mteb rounds Retrieval and Reranking to five digits, the bootstrap does not
_SUITES = {experiment_of(suite) for suite in SUITES}
_ABLATIONS = "ablations"  # the module of that name loads torch
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ARRAYS = {leakage.EXPERIMENT: leakage.SUFFIX, layers.EXPERIMENT: layers.SUFFIX}
_PARTS = {"masked_accuracy": 1, "ranking_accuracy": 2}  # of an item: a tie counts half


def faults(path: Path) -> list[str]:
    """What is wrong with a record, each in one line that a reader can act on; empty if nothing."""
    try:
        record = read_record(path)
    except RecordError as error:
        return [str(error)]
    found = origin_faults(record.provenance) + training_faults(record)
    found += number_faults(record) + registry_faults(record) + status_faults(record, path)
    if record.experiment in _ARRAYS:
        array = path.with_name(path.name.removesuffix(".json") + _ARRAYS[record.experiment])
        found += array_faults(record, array)
    if record.model in MODELS and record.variant in VARIANTS:
        found += adapter_faults(record)
    else:
        found.append(f"the registry does not know {record.model} {record.variant}")
    return [f"{path}: {why}. Run its command again at a clean commit." for why in found]


# --------------------------------------------------------------------------- origin
def origin_faults(provenance: dict[str, object]) -> list[str]:
    """What keeps a provenance from saying which committed script made a number."""
    found = _state_faults(provenance)
    if "amended" in provenance:
        found += _unexplained(provenance, provenance.get("commit"))
    command = str(provenance.get("command"))
    if script_of(command) is None:
        found.append(f"made by {command!r}, which names no script of this repository")
    return found


def training_faults(record: Record) -> list[str]:
    """The same of the training that a record was made with, as far as the record tells of it.

    Where the origin was amended, the training's own note was left as the machine wrote it: the page
    that explains the correction must tell of its commit, and the flag says nothing.
    """
    training = record.scores.get("training")
    if not training:
        return []
    if not isinstance(training, dict):
        return ["scores.training is no object"]
    if "amended" in record.provenance:
        found = _unexplained(record.provenance, training.get("commit"))
    else:  # records of before the flag was copied lack it
        found = _state_faults({"dirty": False} | training)
    return [f"scores.training: {why}" for why in found]


def _state_faults(state: dict[str, object]) -> list[str]:
    found = []
    if state.get("dirty") is not False:
        found.append("made with changes that no commit holds (dirty)")
    if not _COMMIT.fullmatch(str(state.get("commit"))):
        found.append(f"made at commit {state.get('commit')!r}, which is none")
    return found


def _unexplained(provenance: dict[str, object], commit: object) -> list[str]:
    """Whether the page that ``amended`` names does not tell of a commit."""
    said = str(provenance["amended"])
    pages = [ROOT / word for word in said.split() if word.endswith(".md")]
    texts = [page.read_text(encoding="utf-8") for page in pages if page.is_file()]
    if _COMMIT.fullmatch(str(commit)) and any(str(commit)[:9] in text for text in texts):
        return []
    return [f"amended ({said}), which does not tell of commit {commit!r}"]


def script_of(command: str) -> Path | None:
    """The script or module of this repository that a recorded command runs; None for others."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            module = ROOT.joinpath(*word.split("."))
            candidates = [module.with_suffix(".py"), module / "__main__.py"]
        elif word.endswith(".py"):
            candidates = [ROOT / word]
        else:
            continue
        inside = (file for file in candidates if file.resolve().is_relative_to(ROOT))
        return next((file for file in inside if file.is_file()), None)
    return None


# --------------------------------------------------------------------------- numbers
def number_faults(record: Record) -> list[str]:
    """Where a score contradicts its interval, or the other places of the record that hold it."""
    score, found = record.score, []
    low, high = record.interval or (-1, 1)
    if not low - ROUNDED <= score <= high + ROUNDED:
        found.append(f"score {score!r} is outside its interval {low!r} to {high!r}")
    for name, room in _places(record).items():
        value = _inside(record.scores, name)
        if not _is_number(value) or abs(value - score) > room:
            found.append(f"score is {score!r}, but scores.{name} is {value!r}")
    bounds = record.scores.get("bootstrap")
    if isinstance(bounds, dict) and record.interval != (bounds.get("low"), bounds.get("high")):
        found.append(f"interval is {record.interval}, but scores.bootstrap has {bounds}")
    right = score * record.n * _PARTS.get(record.metric, 0)
    if abs(right - round(right)) > SAME * record.n:
        found.append(f"score {score!r} is no share of n = {record.n} items")
    elif record.metric == "masked_accuracy":
        wilson = binomtest(round(right), record.n).proportion_ci(method="wilson")
        if not _are_close(list(record.interval or ()), [wilson.low, wilson.high]):
            found.append(f"interval is {record.interval}, but Wilson's of score and n {wilson}")
    return found


def _places(record: Record) -> dict[str, float]:
    """Names in ``scores`` that must hold the score, and how far it may be off there."""
    if record.experiment == word_evaluation.EXPERIMENT:
        return {"accuracy.mean": SAME, "accuracy.per_seed": SAME}
    found = {}
    if record.experiment in _SUITES:
        found = {"main_score": SAME, record.metric: SAME}
    elif record.metric == "cosine_spearman" or "bootstrap" in record.scores:
        found = {"bootstrap.score": ROUNDED}
    if record.scores.get("bootstrap") is not None:  # the first records kept its interval alone
        found["bootstrap.score"] = ROUNDED
    return found


def _inside(values: Any, name: str) -> Any:
    """The value at a dotted name, of a list its mean; None where there is none."""
    for key in name.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    if isinstance(values, list) and values and all(map(_is_number, values)):
        return float(np.mean(values))
    return values


def array_faults(record: Record, array: Path) -> list[str]:
    """Where a record's numbers are not those of the array file beside it."""
    if not array.is_file():
        return [f"{array.name} is missing beside it"]
    try:
        again = _summary(record, array)
    except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        return [f"{array.name} beside it cannot be read ({error})"]
    said = {
        "score": record.score, "n": record.n, "scores": record.scores,
        "interval": record.interval and list(record.interval),
    }  # fmt: skip
    return [
        f"{name} is {old!r}, but {array.name} gives {new!r}"
        for name, old, new in differences(said, json.loads(json.dumps(again)))
        if not _are_close(old, new)
    ]


def _summary(record: Record, array: Path) -> dict[str, Any]:
    """Score, interval, scores and n as the arrays give them."""
    if record.experiment == leakage.EXPERIMENT:
        table = pd.read_parquet(array)
        both = (table[name].to_numpy() for name in ("cos_pos", "cos_neg"))
        # How many beginnings lost a token is not in the table.
        cosines = leakage.Cosines(tuple(table["id"]), *both, record.scores["merged"], {})
        return leakage.summarise(cosines) | {"n": len(table)}
    with np.load(array) as held:
        names = ("similarity", "norms", "norms_bi", "lengths")
        found = layers.LayerSimilarity(*(held[name] for name in names), cost={})
    return layers.summarise(found) | {"n": len(found.lengths)}


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every value that is not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = (side.get(key, UNKNOWN) for side in (old, new))
            yield from differences(*inner, f"{name}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for row, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{name}[{row}]")
    elif old != new:
        yield name, old, new


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_close(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(map(_are_close, old, new))
    if not (_is_number(old) and _is_number(new)):
        return False
    return math.isclose(old, new, rel_tol=SAME, abs_tol=SAME)


# --------------------------------------------------------------------------- written down elsewhere
def registry_faults(record: Record) -> list[str]:
    """Where metric, split or subset are not those that the registry has for the task."""
    expected = _expected(record)
    if expected is None:
        return [f"the registry has no {record.experiment} of {record.key.path(Path()).stem}"]
    return [
        f"{name} is {said!r}, the registry has {known!r}"
        for name, known in zip(("metric", "split", "subset"), expected, strict=True)
        if (said := getattr(record, name)) != known
    ]


def _expected(record: Record) -> tuple[str, str, str] | None:
    """Metric, split and subset; None for a task that the registry does not know there."""
    if record.experiment == word_evaluation.EXPERIMENT:
        return "accuracy", "test", "default"
    if record.experiment == layers.EXPERIMENT:
        return "cosine", "all", "default"
    if record.task == leakage.TASK:  # also where the attention sink is left out of its pooling
        return "ranking_accuracy", "all", "default"
    task, split = TASKS.get(record.task), None
    if record.experiment == attention_sink.EXPERIMENT:
        split = PAIRS.split
    elif record.experiment == _ABLATIONS:
        runs = [a for group in ABLATIONS.values() for a in group if a.name == record.setting]
        split = next((m.split for a in runs for m in a.measured if m.task == record.task), "")
        if split and record.task == WIKITEXT:
            return "masked_accuracy", split, "default"
    if task is None or split == "":
        return None
    return task.metric, split or task.split, task.subset


def status_faults(record: Record, path: Path) -> list[str]:
    """Where mirrored data have another status than ``mirror.csv`` of the same results says.

    That file speaks of the split that the registry names; drawn parts of other splits, and texts
    that are no task's (Wikitext), are not in it.
    """
    table = path.resolve().parents[5] / "mirror.csv"  # beside raw/
    if record.dataset["source"] != "mirror" or not table.is_file():
        return []
    task = record.task
    if record.experiment == word_evaluation.EXPERIMENT:
        task = mirror_report.WORD_TASKS
    elif task not in TASKS or record.split != TASKS[task].split:
        return []
    with open(table, encoding="utf-8", newline="") as handle:
        known = {row["task"]: row["status"] for row in csv.DictReader(handle)}.get(task)
    said = record.dataset["status"]
    if known in (None, said):
        return []
    return [f"dataset.status is {said!r}, {table.name} has {known!r} for {task}"]


# --------------------------------------------------------------------------- adapters
def source_of(record: Record) -> str:
    """Whose adapters a record was made with: ``own`` or ``published``, as its setting says."""
    marks = (record.setting or "").split("-")
    return next((s for s in ADAPTER_SOURCES if s in marks), ADAPTER_SOURCES[0])


def adapter_faults(record: Record) -> list[str]:
    """Where a record's adapters are not those of its variant, as far as these are at hand.

    Ablations train their own, which are not kept; their number alone is known.
    """
    stages = _stages(record)
    if len(record.adapters) != len(stages):
        return [f"it names {len(record.adapters)} adapters, its variant has {len(stages)}"]
    if record.experiment == _ABLATIONS:
        return []
    found = []
    for stage, said in zip(stages, record.adapters, strict=True):
        there = _hashes(record.model, record.variant, stage, source_of(record))
        if there and said not in there:
            shown = ", ".join(digest[:12] for digest in there)
            found.append(f"adapter {stage} was {said[:12]}, at hand is {shown}")
    return found


def _stages(record: Record) -> tuple[str, ...]:
    variant = VARIANTS[record.variant]
    if record.experiment == layers.EXPERIMENT:  # of untrained weights
        return ()
    of_words = record.experiment == word_evaluation.EXPERIMENT
    own_words = of_words and MODELS[record.model].mntp_words
    if own_words and variant.stages == ("mntp",) and source_of(record) == "own":
        return (WORDS_STAGE,)
    return stages_of(variant)


@cache
def _hashes(model: str, variant: str, stage: str, source: str) -> tuple[str, ...]:
    """sha256 of the adapters of a stage that are here: trained, shipped, or the authors'."""
    if source == "published":
        try:
            folders = published_adapters(MODELS[model], VARIANTS[variant], local_only=True)
        except AdapterError:
            return ()
        folders = [folders[stages_of(VARIANTS[variant]).index(stage)]]
    else:
        roots = (paths.checkpoints_dir(), paths.shipped_adapters_dir())
        folders = [root / model / stage for root in roots]
    files = [folder / ADAPTER_WEIGHTS for folder in folders]
    return tuple(sha256_file(file) for file in files if file.is_file())
