"""Are the records true? All are checked for what they say, a random few are measured again.

    make verify-records                          # five of the cheap ones
    make verify-records NUMBER=20 ONLY=pooling_leakage SEED=7
    python -m llm2vec.verify --only smollm2-135m/bi-mntp --max-tokens 100000

Integrity (:mod:`llm2vec.integrity`) is checked for every record. Those that are drawn, among the
ones of at most ``--max-tokens`` tokens, are measured again by the function that the experiment's
script calls, into a temporary folder. With the same package code, processor, number of threads,
versions, dtype and device every number must come out bit for bit; elsewhere, or where the old
record does not say, score and interval must be within the registry's tolerance, details (other
metrics, layers) within some times that, and counts the same. One line a record; exit code 1 for any
difference. What cannot be measured here (data, weights or adapters not at
hand) is said.

Not drawn: texts of one's own (``--triples``, ``--paragraphs``), and ablations that train. Features
of words that are in the cache are taken from there.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llm2vec import attention_sink, evaluation, layers, leakage, paths, word_evaluation
from llm2vec.analyses import measure_layers, measure_leakage
from llm2vec.errors import AdapterError, AssetError, DataError, LLM2VecError, SettingError
from llm2vec.integrity import UNKNOWN, differences, faults, source_of
from llm2vec.registry_ablations import ABLATIONS
from llm2vec.registry_verdicts import DETAILS, rerun_tolerance
from llm2vec.results import Record, read_record

Status = Literal["equal", "close", "differs", "not run"]
# What decides the last bits of a score; ``versions`` and ``dataset`` are compared item by item.
MACHINE = (
    "platform",
    "processor",
    "threads",
    "cpus",
    "device",
    "dtype",
    "attention_implementation",
)


@dataclass(frozen=True)
class Outcome:
    """What became of one record; ``text`` names scores, difference and what differs in origin."""

    status: Status
    text: str


# --------------------------------------------------------------------------- what to measure again
def tokens_of(record: Record) -> float:
    """Tokens that measuring it again takes, training included."""
    training = record.scores.get("training") or {}
    return float(record.cost.get("tokens", 0)) + float(training.get("tokens", 0))


def can_be_rerun(record: Record) -> bool:
    """Whether the record says all that its experiment needs to be told."""
    trained = record.experiment == "ablations" and bool(record.hyperparameters["training"])
    return record.dataset["source"] != "file" and not trained


def draw(
    records: Mapping[Path, Record], number: int, seed: int, max_tokens: float
) -> dict[Path, Record]:
    """A random sample of the records that are cheap enough, in the order of their paths."""
    cheap = [p for p, r in records.items() if can_be_rerun(r) and tokens_of(r) <= max_tokens]
    if not cheap:
        raise SettingError(
            f"none of {len(records)} records can be measured again with {max_tokens:,.0f} tokens. "
            "Raise --max-tokens, or name others with --only."
        )
    chosen = random.Random(seed).sample(sorted(cheap), min(number, len(cheap)))
    return {path: records[path] for path in sorted(chosen)}


# --------------------------------------------------------------------------- measuring again
def rerun(record: Record, together: Sequence[str], folder: Path) -> Record:
    """Measure a record again into ``folder``, as its experiment does.

    ``together``: the poolings that were measured in the same passes; which texts share a batch
    depends on them. Raises a :class:`~llm2vec.errors.LLM2VecError` for what is not at hand.
    """
    how: Mapping[str, Callable[[Record, Path], None]] = {
        leakage.EXPERIMENT: _leakage, layers.EXPERIMENT: _layers,
        attention_sink.EXPERIMENT: _sink, word_evaluation.EXPERIMENT: _words,
        "ablations": _ablation,
    }  # fmt: skip
    if record.experiment in how:
        how[record.experiment](record, folder)
    else:
        _sentences(record, together, folder)
    return read_record(record.key.path(folder))


def _device(record: Record) -> str | None:
    """A CPU's record is made on a CPU; another one on the best device there is."""
    return "cpu" if record.provenance["device"] == "cpu" else None


def _dtype(record: Record) -> str:
    return str(record.provenance["dtype"])


def _sentences(record: Record, together: Sequence[str], folder: Path) -> None:
    suites = {evaluation.experiment_of(name): name for name in ("offline", "full", "subset")}
    run = evaluation.plan(
        record.model, record.variant, suites[record.experiment], folder,
        task=record.task, dtype=_dtype(record), adapters=source_of(record),
    )  # fmt: skip
    evaluation.execute(replace(run, poolings=tuple(together)), device=_device(record))


def _leakage(record: Record, folder: Path) -> None:
    measure_leakage(
        record.model, record.variant, folder,
        adapters=source_of(record), device=_device(record), dtype=_dtype(record),
    )  # fmt: skip


def _layers(record: Record, folder: Path) -> None:
    measure_layers(record.model, folder, device=_device(record), dtype=_dtype(record))


def _sink(record: Record, folder: Path) -> None:
    run = attention_sink.plan(record.model, record.variant, source_of(record), _dtype(record))
    passes = [
        (task, lefts)
        for task, lefts in attention_sink.PASSES
        if any(run.key(task, left) == record.key for left in lefts)
    ]
    attention_sink.execute(run, folder, _device(record), passes)


def _words(record: Record, folder: Path) -> None:
    corpus, _, task = record.task.rpartition("-")  # "mini-ner", or "ner" of CoNLL-2003
    run = word_evaluation.plan(
        record.model, record.variant, task=task, data=corpus or "conll2003",
        dtype=_dtype(record), adapters=source_of(record),
        max_sentences=record.hyperparameters["max_sentences"],
    )  # fmt: skip
    word_evaluation.execute(run, folder, _device(record))


def _ablation(record: Record, folder: Path) -> None:
    from llm2vec import ablations  # here, as torch loads slowly

    (ablation,) = (a for runs in ABLATIONS.values() for a in runs if a.name == record.setting)
    measured = tuple(m for m in ablation.measured if m.task == record.task)
    runs = ablations.plan(record.model, [replace(ablation, measured=measured)], _device(record))
    ablations.execute(runs, folder)


# --------------------------------------------------------------------------- comparing
def compare(record: Record, again: Record) -> Outcome:
    """Whether a record that was made again is the same."""
    origin = list(_origin_differences(record, again))
    told = f"; differs in {', '.join(origin)}" if origin else "; same machine, versions and dtype"
    what = [
        f"{name}: {old!r} -> {new!r}"
        for name, old, new in (
            *differences(record.hyperparameters, again.hyperparameters),
            *differences({"adapters": record.adapters}, {"adapters": again.adapters}),
        )
    ]
    if what:
        return Outcome("differs", f"made with other settings, {'; '.join(what)}{told}")
    numbers = list(differences(_numbers(record), _numbers(again)))
    if not numbers:
        return Outcome("equal", f"{record.score!r}")
    moved = again.score - record.score
    said = f"{record.score!r}, now {again.score!r} ({moved:+.3g})"
    if not moved:
        name, old, new = numbers[0]
        said = f"{record.score!r} as before, but {name} was {old!r} and is {new!r}"
    tolerance = rerun_tolerance(_dtype(record), record.metric, record.n)
    wide = [
        f"{name}: {old!r} -> {new!r}"
        for name, old, new in numbers
        if not _within(name, old, new, tolerance)
    ]
    if origin and not wide:
        return Outcome("close", f"{said}, within {tolerance:g}{told}")
    allowed = f", more than {tolerance:g} ({wide[0]})" if origin else ""
    return Outcome("differs", f"{said}{allowed}{told}")


def _within(name: str, old: Any, new: Any, tolerance: float) -> bool:
    """Whether rounding explains a number: score and interval by the tolerance, details by more.

    Details are other metrics, layers, single parts of a mean. Counts, labels, lengths never move.
    """
    if not (isinstance(old, float) and isinstance(new, float)):
        return False
    room = DETAILS if name.startswith("scores.") else 1
    return abs(new - old) <= tolerance * room * max(1.0, abs(old))


def _numbers(record: Record) -> dict[str, Any]:
    """What was measured; what a training cost is not part of it."""
    scores = {name: value for name, value in record.scores.items() if name != "training"}
    return {
        "score": record.score, "n": record.n, "interval": list(record.interval or ()),
        "scores": scores,
    }  # fmt: skip


def _origin_differences(record: Record, again: Record) -> Iterator[str]:
    old, new = (
        {name: r.provenance.get(name, UNKNOWN) for name in MACHINE}
        | {"data": dict(r.dataset)}
        | dict(r.provenance["versions"])
        for r in (record, again)
    )
    for name, before, now in differences(old, new):
        yield f"{name} ({before} -> {now})"
    commits = [str(r.provenance.get("commit", UNKNOWN)) for r in (record, again)]
    if not _same_code(*commits):
        yield "code ({:.9} -> {:.9})".format(*commits)


def _same_code(before: str, now: str) -> bool:
    """Whether git knows the package to be the same at both commits: another kernel, other bits."""
    if before == now:
        return True
    done = subprocess.run(
        ["git", "diff", "--quiet", "--end-of-options", before, now, "--", "llm2vec"],
        cwd=paths.ROOT, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


# --------------------------------------------------------------------------- command line
def check(records: Mapping[Path, Record], chosen: Mapping[Path, Record]) -> Iterator[Outcome]:
    """Measure the chosen records again, one after the other."""
    for path, record in chosen.items():
        together = [
            r.pooling
            for r in records.values()
            if replace(r.key, pooling=record.pooling) == record.key
            and r.provenance == record.provenance
        ]
        with tempfile.TemporaryDirectory(prefix="llm2vec-verify-") as folder:
            try:
                with redirect_stdout(sys.stderr):  # what the experiment says of itself
                    again = rerun(record, together, Path(folder))
                outcome = compare(record, again)
            except LLM2VecError as error:
                outcome = Outcome("not run" if _not_at_hand(error) else "differs", str(error))
        print(f"{outcome.status:<8} {path}: {outcome.text}", flush=True)
        yield outcome


def _not_at_hand(error: LLM2VecError) -> bool:
    from llm2vec.loading import ModelNotFoundError

    return isinstance(error, DataError | AssetError | AdapterError | ModelNotFoundError)


def main(
    number: Annotated[int, typer.Option(help="Records to measure again.", min=1)] = 5,
    only: Annotated[str, typer.Option(help="A part of the records' paths.")] = "",
    seed: Annotated[
        int | None, typer.Option(help="Of the draw; default another each time.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="What counts as cheap.", min=1)] = 20_000,
    results: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
) -> None:
    """Check every record, measure a random few again; exit code 1 for any difference."""
    root = results or paths.results_dir()
    files = [p for p in sorted((root / "raw").rglob("*.json")) if not p.name.startswith(".tmp-")]
    named = [path for path in files if only in path.relative_to(root).as_posix()]
    if not named:
        raise SettingError(f"no record of {len(files)} in {root / 'raw'} has {only!r} in its path.")
    wrong = {path: found for path in named if (found := faults(path))}
    for why in (line for found in wrong.values() for line in found):
        print(f"invalid  {why}", flush=True)
    records = {p.relative_to(root): read_record(p) for p in files if p not in wrong}
    sound = {p: r for p, r in records.items() if root / p in named}
    seed = random.randrange(10_000) if seed is None else seed
    chosen = draw(sound, number, seed, max_tokens) if sound else {}
    print(f"{len(sound)} of {len(named)} records are sound; {len(chosen)} drawn with seed {seed}",
          file=sys.stderr)  # fmt: skip
    found = Counter(outcome.status for outcome in check(records, chosen))
    print(", ".join(f"{count} {status}" for status, count in found.items()) or "none measured")
    if wrong or found["differs"] or not found["equal"] + found["close"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    from llm2vec.console import run

    run(main)
