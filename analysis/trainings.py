"""The trainings behind the results: those of the shipped adapters and of the ablations, each once.

An adapter says in ``adapters/{model}/{stage}/provenance.json`` what it was trained on and how long;
a record of an ablation says it of the adapter that it measured. A run of more steps goes on from
the shorter one and its numbers contain the shorter one's: it counts with what it added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.collect import Results
from llm2vec.errors import RecordError
from llm2vec.registry import MODELS, VARIANTS
from llm2vec.results import Record, hash_of

Note = Mapping[str, Any]
# What a note is read for; a file without one of these is damaged.
_NEEDED = ("model", "stage", "data", "steps", "tokens", "seconds", "final_loss", "hyperparameters")
_ORIGIN = ("commit", "dirty", "started", "command", "device")


@dataclass(frozen=True)
class Training:
    """One training, or what a longer run added to a shorter one's.

    ``name`` is the adapter's or the ablation's, ``origin`` the provenance.
    """

    model: str
    variant: str
    name: str
    tokens: float
    seconds: float
    adapter: bool
    origin: Note

    @property
    def device(self) -> str:
        return str(self.origin["device"])


def trainings(results: Results) -> Iterator[Training]:
    """Every training, the adapters' first. One that several records share is its first record's."""
    for (model, stage), note in adapter_notes(results.root):
        yield Training(
            model,
            variant_of(stage),
            stage,
            note["tokens"],
            note["seconds"],
            True,
            note["provenance"],
        )
    records = sorted(results.records, key=lambda r: str(r.provenance["started"]))
    alike: dict[str, list[Record]] = {}
    for record in records:
        if record.scores.get("training"):
            alike.setdefault(_apart_from_steps(record), []).append(record)
    for members in alike.values():
        yield from _increments(members)


def _apart_from_steps(record: Record) -> str:
    """Hash of what two runs share when one can go on from the other."""
    same = {k: v for k, v in record.hyperparameters.get("training", {}).items() if k != "steps"}
    data = record.scores["training"].get("data_hash")
    return hash_of({"model": record.model, "variant": record.variant, "of": same, "data": data})


def _increments(records: Iterable[Record]) -> Iterator[Training]:
    """Each run of these, without what the longest one before it had spent already."""
    runs: dict[tuple[float, float, float], Record] = {}
    for record in records:
        spent = record.scores["training"]
        runs.setdefault((spent["tokens"], spent["seconds"], spent["final_loss"]), record)
    done: list[tuple[float, float]] = []
    for (tokens, seconds, _), record in sorted(runs.items(), key=lambda item: item[0]):
        # One that took less time, or as many steps again, did not go on from the other.
        within = [d for d in done if d[0] < tokens and d[1] < seconds]
        before = max(within, default=(0, 0.0))
        yield Training(
            record.model, record.variant, str(record.setting), tokens - before[0],
            round(seconds - before[1], 3), False, record.provenance,
        )  # fmt: skip
        done.append((tokens, seconds))


def variant_of(stage: str) -> str:
    """The variant whose last adapter a stage trains; the stage itself where there is none."""
    return next((v.name for v in VARIANTS.values() if v.adapter == stage), stage)


def adapter_notes(root: Path) -> list[tuple[tuple[str, str], Note]]:
    """Provenance by (model, stage), in the registry's order; a damaged file is named."""
    found = []
    for path in sorted((root / "adapters").glob("*/*/provenance.json")):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            _check(note)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(
                f"{path}: not the provenance of an adapter ({type(error).__name__}: {error}). "
                "Train the adapter again, or remove its folder."
            ) from error
        found.append(((path.parts[-3], path.parts[-2]), note))
    order = {name: index for index, name in enumerate(MODELS)}
    stages = [variant.adapter for variant in VARIANTS.values()]
    return sorted(found, key=lambda item: (
        order.get(item[0][0], len(order)),
        stages.index(item[0][1]) if item[0][1] in stages else len(stages), item[0],
    ))  # fmt: skip


def _check(note: Note) -> None:
    """Raises where something is missing or of another kind."""
    for name in _NEEDED:
        note[name]
    for name in _ORIGIN:
        note["provenance"][name]
    f"{note['steps']:,}{note['tokens']:,}{note['seconds']:,.0f}{note['final_loss']:.3f}"
    [(d["id"], d["source"], d["status"]) for d in note["data"]]
