"""The table of the shipped adapters: what they were trained on, and how far from the recipe.

Made of ``adapters/{model}/{stage}/provenance.json``, which every trained adapter carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pandas as pd

from analysis.collect import Results
from analysis.render import NOT_RUN, Origin, Table, number
from analysis.tables import display_model, once
from analysis.trainings import Note, adapter_notes
from llm2vec.registry import MNTP, MODELS, SimCSE, settings_dict
from llm2vec.registry_datasets import MIRROR_NAMES, STAND_IN

Notes = Mapping[tuple[str, str], Note]  # by model and stage


def training(results: Results) -> Table:
    """What the shipped adapters were trained on and how far that is from the paper's recipe."""
    notes, small = dict(adapter_notes(results.root)), MODELS["s-llama-1.3b"]
    header = ["Model", "Adapter", "Text", "Steps", "Tokens", "Seconds", "Device", "Final loss",
              "Masked accuracy", "Departures from the published recipe"]  # fmt: skip
    rows = [[display_model(model), stage, *_training_row(note)]
            for (model, stage), note in notes.items()]  # fmt: skip
    models = once([row[0] for row in rows])
    shown = [[model, *row[1:]] for model, row in zip(models, rows, strict=True)]
    breaks = frozenset(i + 1 for i, (a, b) in enumerate(pairwise(notes)) if a[0] != b[0])
    return Table(
        "training", "The shipped adapters", header,
        shown or [["not run", *[NOT_RUN] * (len(header) - 1)]], "llprrrlrlp",
        _training_data(notes), _adapter_origin(notes), f"{len(notes)} adapters", breaks=breaks,
        notes=("Masked accuracy, times 100: before and after, on Wikitext's test split. "
               "Departures: the published value, then the one used here; the paper prints no "
               "learning rates, those are of its released configurations, and its batch of SimCSE "
               f"is {SimCSE().batch_size}, for {small.display} {small.simcse.batch_size}.",),
    )  # fmt: skip


def _training_row(note: Note) -> list[str]:
    text = "; ".join(map(_text_source, note["data"]))
    return [
        text, f"{note['steps']:,}", f"{note['tokens']:,}", f"{note['seconds']:,.0f}",
        note["provenance"]["device"], number(note["final_loss"], digits=3),
        _accuracy_text(note), _departures_text(departures(note)),
    ]  # fmt: skip


def _text_source(data: Mapping[str, str]) -> str:
    """Name of a training text; a stand-in goes by the mirror's name, not that of the real one."""
    if data["status"] == STAND_IN and data["id"] in MIRROR_NAMES:
        return f"{MIRROR_NAMES[data['id']]} ({data['source']}, in place of {data['id']})"
    return f"{data['id']} ({data['source']}, {data['status']})"


def _accuracies(note: Note) -> list[float | None]:
    """Masked accuracy before and after; None for SimCSE or where it could not be measured."""
    measured = note.get("masked_accuracy") or {}
    return [measured[when]["accuracy"] if when in measured else None
            for when in ("before", "after")]  # fmt: skip


def _accuracy_text(note: Note) -> str:
    before, after = _accuracies(note)
    if before is None or after is None:
        return NOT_RUN if "masked_accuracy" in note else ""
    return f"{number(100 * before)} → {number(100 * after)}"


def departures(note: Note) -> dict[str, tuple[Any, Any]]:
    """Hyperparameters by name that are not the paper's: its value and the one used.

    A model of the paper has its own recipe in the registry; another one is held against the
    paper's common values, whatever the registry trains it with.
    """
    stage, here = note["stage"], note["hyperparameters"]
    model = MODELS[note["model"]]
    if stage == "mntp-words":
        recipe = model.mntp_words
    elif stage == "mntp":
        recipe = model.mntp if model.in_paper else MNTP()
    else:
        recipe = model.simcse if model.in_paper else SimCSE()
    theirs = settings_dict(recipe)
    return {name: (theirs[name], here[name]) for name in theirs if here[name] != theirs[name]}


def _departures_text(departures: Mapping[str, tuple[Any, Any]]) -> str:
    texts = [f"{name.replace('_', ' ')} {_plain(theirs)} → {_plain(ours)}"
             for name, (theirs, ours) in departures.items()]  # fmt: skip
    return ", ".join(texts) or "none"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _training_data(notes: Notes) -> pd.DataFrame:
    rows = [
        (*names, *_training_row(note)[:1], note["steps"], note["tokens"], note.get("epochs"),
         note["seconds"], note["provenance"]["device"], note["final_loss"], *_accuracies(note),
         json.dumps(departures(note), sort_keys=True),
         note.get("adapter_sha256"), note["provenance"]["commit"])
        for names, note in notes.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[
        "model", "adapter", "text", "steps", "tokens", "epochs", "seconds", "device",
        "final_loss", "accuracy_before", "accuracy_after", "departures", "sha256", "commit",
    ])  # fmt: skip


def _origin_row(note: Note) -> dict[str, Any]:
    return {name: note["provenance"][name] for name in ("commit", "started", "dirty")}


def _adapter_origin(notes: Notes) -> Origin:
    rows = [_origin_row(note) for note in notes.values()]
    return Origin.of(pd.DataFrame(rows, columns=["commit", "started", "dirty"]))
