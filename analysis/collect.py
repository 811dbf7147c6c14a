"""Records to one tidy table: ``results/raw/**.json`` -> ``results/scores.csv``.

One row per record, its axes first, scores as they are in the record (0 to 1). The bytes depend on
the records alone, so the file can be regenerated and compared. A damaged record, or one whose
axes the registry does not know, stops the collection with its name.

    from analysis.collect import load_results
    scores = load_results().scores
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from llm2vec import registry
from llm2vec.errors import RecordError, UnknownNameError
from llm2vec.paths import results_dir
from llm2vec.registry_verdicts import rerun_tolerance
from llm2vec.results import NONE, Key, Record, iter_records

AXES = ("experiment", "model", "variant", "pooling", "task", "setting")
COLUMNS = {
    **dict.fromkeys(AXES, "str"),
    "metric": "str", "split": "str", "subset": "str",
    "score": "float64", "low": "float64", "high": "float64", "n": "int64",
    "std": "float64", "entity_f1": "float64", "seeds": "int64",
    "dataset": "str", "dataset_revision": "str", "dataset_source": "str", "dataset_status": "str",
    "model_revision": "str", "adapters": "str", "hyperparameters_hash": "str",
    "commit": "str", "dirty": "bool", "started": "str", "device": "str", "dtype": "str",
    "seconds": "float64", "tokens": "float64", "padding_tokens": "float64",
    "tokens_per_second": "float64",
}  # fmt: skip

# Words of a manifest status that keep a dataset's scores out of any column headed MTEB.
MARKS = ("partial", "reconstructed", "substitute", "stand-in", "unverified")
# What says that the data are those that they should be; any other status is a mark of its own.
UNMARKED = ("exact", "original", "built", "own sentences", "demonstration")
_ROWS_ASIDE = "exact, row"  # the hub's rows in another order: a remark, no mark
MTEB = ("mteb_subset", "mteb_full")
_SENTENCE_EXPERIMENTS = (*MTEB, "offline_suite")
# Experiments whose setting says by one word that the adapters are the authors'.
_WITH_ADAPTERS = (*_SENTENCE_EXPERIMENTS, "word_probing", "pooling_leakage")
OWN, PUBLISHED = registry.ADAPTER_SOURCES


@dataclass(frozen=True, eq=False)
class Results:
    """A results folder, read once; treated as read-only, so what is derived from it is cached.

    ``paper``: folder of the paper's printed numbers.
    """

    root: Path
    records: tuple[Record, ...]
    scores: pd.DataFrame
    paper: Path

    @cached_property
    def chosen(self) -> frozenset[Key]:
        """The records in the paper's setting: what tables, claims and verdicts are made of."""
        return frozenset(in_the_papers_setting([record.key for record in self.records]))

    @cached_property
    def in_setting(self) -> pd.Series:
        """Which rows of ``scores`` are those of ``chosen``."""
        axes = self.scores[list(AXES)].astype(object)
        keys = axes.where(axes.notna(), None).itertuples(index=False, name=None)
        return pd.Series([Key(*key) in self.chosen for key in keys], self.scores.index, dtype=bool)

    def records_of(self, experiment: str) -> list[Record]:
        """Records of one experiment in the paper's own setting, in the registry's order."""
        models, variants = list(registry.MODELS), [*registry.VARIANTS, NONE]
        found = [r for r in self.records if r.experiment == experiment and r.key in self.chosen]
        return sorted(found, key=lambda r: (models.index(r.model), variants.index(r.variant)))

    def of(self, *experiments: str) -> pd.DataFrame:
        """Rows of these experiments in the paper's own setting."""
        return self.scores[self.scores["experiment"].isin(experiments) & self.in_setting]

    def adapters_of(self, model: str, variant: str, *experiments: str) -> str:
        """Whose adapters are behind the rows of ``of``: ``own``, ``published``, or empty."""
        rows = self.of(*experiments)
        rows = rows[(rows["model"] == model) & (rows["variant"] == variant)]
        if rows.empty or not registry.VARIANTS[variant].stages:
            return ""
        return PUBLISHED if rows["setting"].eq(PUBLISHED).any() else OWN

    @cached_property
    def mteb(self) -> Mapping[tuple[str, str, str], dict[str, Score]]:
        """MTEB scores by (model, variant, pooling) and task, marked datasets included."""
        return by_cell(self.of(*MTEB))

    @cached_property
    def offline(self) -> Mapping[tuple[str, str, str], dict[str, Score]]:
        """Scores of the offline suite by (model, variant, pooling) and task."""
        return by_cell(self.of("offline_suite"))

    @cached_property
    def words(self) -> Mapping[tuple[str, str, str], dict[str, Score]]:
        """Word-level accuracies by (model, variant, ``none``) and task."""
        return by_cell(self.of("word_probing"))


@dataclass(frozen=True)
class Score:
    """One score in points (0 to 100) with its 95 % interval and its dataset's mark, if any."""

    value: float
    low: float
    high: float
    n: int
    std: float
    entity_f1: float
    mark: str


def mark_of(status: object) -> str:
    """What a score must carry because of its data; empty only for a status known to be good."""
    said = status.strip() if isinstance(status, str) else ""
    if said in UNMARKED:
        return ""
    rows_aside = said.startswith(_ROWS_ASIDE) and ";" not in said
    return _word_in(said) or ("" if rows_aside else said or "no status")


def _word_in(status: str) -> str:
    return next((mark for mark in MARKS if mark in status.lower()), "")


def points(score: float) -> float:
    """A score of 0 to 1 times 100, without the digits that only binary fractions have."""
    return round(100 * score, 9)


def by_cell(rows: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, Score]]:
    """Scores by (model, variant, pooling), then by task; of two equal records the later row."""
    cells: dict[tuple[str, str, str], dict[str, Score]] = {}
    for row in rows.itertuples():
        score = Score(
            points(row.score), points(row.low), points(row.high), row.n, points(row.std),
            points(row.entity_f1), mark_of(row.dataset_status),
        )  # fmt: skip
        cells.setdefault((row.model, row.variant, row.pooling), {})[row.task] = score
    return cells


# --------------------------------------------------------------------------- the paper's setting
def in_the_papers_setting(keys: Iterable[Key]) -> Iterator[Key]:
    """Keys whose setting is the paper's, each variant of a model with one source of adapters.

    The authors' adapters are those of the printed numbers: where a variant of a model of the paper
    has records with them, its records with own adapters stand aside, so that no mean is over both.
    """
    keys = list(keys)
    authors = set(filter(_by_the_authors, keys))
    aside = {_source_group(key) for key in authors}
    for key in keys:
        if key in authors or (key.setting is None and _source_group(key) not in aside):
            yield key


def _by_the_authors(key: Key) -> bool:
    model = registry.MODELS.get(key.model)
    is_theirs = key.setting == PUBLISHED and key.experiment in _WITH_ADAPTERS
    return is_theirs and model is not None and model.in_paper


def _source_group(key: Key) -> tuple[str, ...]:
    """What has to have one source; a variant without adapters is the same with either."""
    experiment = "mteb" if key.experiment in MTEB else key.experiment
    place = (experiment, key.model, key.variant)
    variant = registry.VARIANTS.get(key.variant)
    return place if variant and variant.stages else (*place, key.pooling, key.task)


# --------------------------------------------------------------------------- collecting
def _check_axes(record: Record, path: Path) -> None:
    known: dict[str, Sequence[str]] = {
        "experiment": registry.EXPERIMENTS,
        "model": tuple(registry.MODELS),
        "variant": (*registry.VARIANTS, NONE),
        "pooling": (*registry.POOLINGS, NONE),
    }
    if record.experiment in _SENTENCE_EXPERIMENTS:
        known["task"] = tuple(registry.TASKS)
    for axis, names in known.items():
        value = getattr(record, axis)
        if value not in names:
            reason = UnknownNameError(axis, value, names)
            raise RecordError(f"{path}: field '{axis}': {reason} Rename or delete the record.")


def _check_one_source(records: Iterable[Record], root: Path) -> None:
    """:class:`RecordError` where a mean would mix adapters or revisions of a model."""
    first: dict[tuple[str | None, ...], Record] = {}
    for record in records:
        if record.experiment not in _SENTENCE_EXPERIMENTS:
            continue
        other = first.setdefault((record.model, record.variant, record.setting), record)
        for name in ("adapters", "model_revision"):
            here, there = getattr(record, name), getattr(other, name)
            if here != there:
                raise RecordError(
                    f"{record.key.path(root)} and {other.key.path(root)} are of one variant, but "
                    f"'{name}' is {here!r} in the first and {there!r} in the second; a mean must "
                    "not mix them. Measure the older ones again by their command, or remove them."
                )


def _check_twice_measured(records: Iterable[Record], root: Path) -> None:
    """:class:`RecordError` where a task's two scores, one of each size of MTEB, are apart."""
    first: dict[Key, Record] = {}
    for record in records:
        if record.experiment not in MTEB:
            continue
        other = first.setdefault(replace(record.key, experiment="mteb"), record)
        dtype = str(record.provenance["dtype"])
        if abs(record.score - other.score) > rerun_tolerance(dtype, record.metric, record.n):
            raise RecordError(
                f"{record.key.path(root)} and {other.key.path(root)} are the same measurement, but "
                f"the score is {record.score} in the first and {other.score} in the second. Remove "
                "the one that is not to count, or both, and run the command again."
            )


def _row(record: Record) -> dict[str, Any]:
    low, high = record.interval or (None, None)
    std, entity_f1 = _word_scores(record)
    return {
        **{axis: getattr(record, axis) for axis in AXES},
        "metric": record.metric, "split": record.split, "subset": record.subset,
        "score": record.score, "low": low, "high": high, "n": record.n,
        "std": std, "entity_f1": entity_f1, "seeds": len(record.seeds),
        "dataset": record.dataset.get("id"),
        **{f"dataset_{name}": record.dataset.get(name)
           for name in ("revision", "source", "status")},
        "model_revision": record.model_revision, "adapters": " ".join(record.adapters) or None,
        "hyperparameters_hash": record.hyperparameters_hash,
        **{name: record.provenance.get(name)
           for name in ("commit", "dirty", "started", "device", "dtype")},
        **{name: record.cost.get(name)
           for name in ("seconds", "tokens", "padding_tokens", "tokens_per_second")},
    }  # fmt: skip


def _word_scores(record: Record) -> tuple[float | None, float | None]:
    """Standard deviation of the accuracy over seeds, and entity F1, of a word-level record."""
    if record.experiment != "word_probing":
        return None, None
    accuracy, f1 = record.scores.get("accuracy"), record.scores.get("entity_f1")
    std = accuracy.get("std") if isinstance(accuracy, dict) else record.scores.get("std")
    return std, f1.get("mean") if isinstance(f1, dict) else f1


def number_in(record: Record, name: str, root: Path) -> float:
    """A number of ``record.scores``; :class:`RecordError` names the file that lacks it."""
    value = record.scores.get(name)
    if not isinstance(value, int | float):
        raise RecordError(
            f"{record.key.path(root)}: field 'scores.{name}' is {value!r}, not a number. "
            "Delete the file and run its command again."
        )
    return float(value)


def collect(root: Path, records: Sequence[Record] | None = None) -> pd.DataFrame:
    """All records below ``root``, sorted by their axes; columns and types are ``COLUMNS``.

    Raises :class:`RecordError` for a record that is damaged or contradicts another one.
    """
    rows, records = [], tuple(iter_records(root)) if records is None else records
    for record in records:
        _check_axes(record, record.key.path(root))
        rows.append(_row(record))
    _check_one_source(records, root)
    _check_twice_measured(records, root)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    try:
        frame = frame.astype(COLUMNS)
    except (TypeError, ValueError):
        _name_the_culprit(rows, records, root)
        raise
    return frame.sort_values(list(AXES), na_position="first", ignore_index=True)


def _name_the_culprit(
    rows: Sequence[dict[str, Any]], records: Iterable[Record], root: Path
) -> None:
    """Raise :class:`RecordError` for the first record with a value of a wrong type."""
    for row, record in zip(rows, records, strict=True):
        for column, kind in COLUMNS.items():
            try:
                pd.Series([row[column]]).astype(kind)
            except (TypeError, ValueError) as error:
                raise RecordError(
                    f"{record.key.path(root)}: '{column}' is {row[column]!r}, not {kind}. "
                    "Delete the file and run its command again."
                ) from error


def to_csv(frame: pd.DataFrame) -> str:
    """The text of ``scores.csv``: floats in their shortest exact form, Unix line ends."""
    return frame.to_csv(index=False, lineterminator="\n")


def load_results(root: Path | None = None) -> Results:
    """Read a results folder (default: the repository's).

    The paper's numbers come from ``root/paper``, else from the repository's own.
    """
    root = results_dir() if root is None else Path(root)
    paper = root / "paper"
    records = tuple(iter_records(root))
    scores = collect(root, records)
    return Results(root, records, scores, paper if paper.is_dir() else results_dir() / "paper")


def beside(record: Record, root: Path, suffix: str) -> Path:
    """The array file beside a record; :class:`RecordError` where it is missing."""
    path = record.key.path(root)
    path = path.with_name(path.name.removesuffix(".json") + suffix)
    if not path.is_file():
        raise RecordError(
            f"{path} is missing: the record beside it needs it. Delete the record and run its "
            "command again."
        )
    return path
