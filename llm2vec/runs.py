"""The folder of a training run: identity, checkpoints, metrics, and the adapter it ends in.

    {output}/adapter_model.safetensors  adapter_config.json  provenance.json     the result
    {output}/metrics.jsonl  loss.png                                             how it went
    {output}/run/settings.json  run/checkpoint-{step}/                           to go on

A checkpoint is written beside its place and renamed, so a folder called ``checkpoint-N`` is
whole. A run goes on only with the settings that it was started with; the number of steps alone
may grow, since neither the schedule nor the order of the data depends on it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm2vec.adapters import ADAPTER_WEIGHTS
from llm2vec.errors import LLM2VecError, SettingError
from llm2vec.results import hash_of, write_atomic

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class TrainingError(LLM2VecError):
    """A run that cannot go on: a loss that is no number, a damaged checkpoint."""

    exit_code = 1


@dataclass
class RunFolder:
    """Where a run lives. ``settings``: everything that decides its result except the steps."""

    folder: Path
    settings: dict[str, Any]
    metrics: list[dict[str, float]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """Folder of what is needed to go on."""
        return self.folder / "run"

    # ----------------------------------------------------------------- opening
    def check(self, steps: int) -> bool:
        """Whether the run is already finished with that many steps.

        Raises :class:`SettingError`, with nothing changed, when the folder holds another run or
        cannot be written to.
        """
        self.settings = json.loads(json.dumps(self.settings))
        note, started = self.folder / "provenance.json", self.run / "settings.json"
        known = started.exists()
        if known:
            self._compare(_read_json(started), started)
        # Weights without a note are of this run, killed between the two, or of an unknown one.
        if (self.folder / ADAPTER_WEIGHTS).exists() and (note.exists() or not known):
            done = _read_json(note) if note.exists() else {}
            self._compare(done.get("settings", {}), note)
            if done["steps"] == steps:
                return True
            self._refuse_fewer(done["steps"], steps)
        last = self.last_checkpoint()
        self._refuse_fewer(_step(last) if last else 0, steps)
        try:
            self.run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"cannot write to {self.folder} ({error.strerror}); choose another --output"
            ) from error
        return False

    def start(self, step: int) -> None:
        """Leave the settings for whoever goes on, and drop the metrics of later steps."""
        text = json.dumps(self.settings, indent=1, sort_keys=True)
        write_atomic(self.run / "settings.json", text + "\n")
        self.metrics = [line for line in self._read_metrics() if line["step"] <= step]
        lines = "".join(json.dumps(line) + "\n" for line in self.metrics)
        write_atomic(self.folder / "metrics.jsonl", lines)

    def _compare(self, other: dict[str, Any], where: Path) -> None:
        mine, data = self.settings, self.settings.get("data_hash")
        if data is not None and other.get("data_hash") == data:
            # The same data; where the hub did not answer the name of their commit is not known.
            other, mine = _without_revisions(other), _without_revisions(mine)
        if hash_of(other) == hash_of(mine):
            return
        before, now = dict(_flat(other)), dict(_flat(mine))
        changed = [
            f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys(), key=_importance)
            if before.get(name) != now.get(name)
        ]
        raise SettingError(
            f"{self.folder} holds another run ({where.name}: {'; '.join(changed[:4])}). Give the "
            "same options, choose another --output, or move the folder away."
        )

    def _refuse_fewer(self, done: int, steps: int) -> None:
        if done > steps:
            raise SettingError(
                f"{self.folder} is already trained for {done} steps, more than the {steps} asked "
                "for; choose another --output"
            )

    # ----------------------------------------------------------------- checkpoints
    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        found = [p for p in self.run.glob("checkpoint-*") if _CHECKPOINT.fullmatch(p.name)]
        return max(found, key=_step, default=None)

    @contextmanager
    def writing_checkpoint(self, step: int) -> Iterator[Path]:
        """A folder to fill; it becomes ``checkpoint-{step}`` at the end, and older ones go."""
        partial = self.partial(step)
        shutil.rmtree(partial.parent, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        self.seal(step)

    def partial(self, step: int) -> Path:
        """Where a checkpoint is written before it is whole."""
        return self.run / ".partial" / f"checkpoint-{step}"

    def seal(self, step: int) -> None:
        """Make a written checkpoint appear under its name, at once and whole."""
        partial = self.partial(step)
        for file in partial.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        target = self.run / partial.name
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        for old in self.run.glob("checkpoint-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    # ----------------------------------------------------------------- metrics
    def _read_metrics(self) -> Iterator[dict[str, float]]:
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return
        for line in file.read_text(encoding="utf-8").splitlines():
            # The line that was being written when the process was killed is left out.
            with suppress(ValueError):
                yield json.loads(line)

    def add_metrics(self, values: dict[str, float]) -> None:
        """Append one line to ``metrics.jsonl``."""
        self.metrics.append(values)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(values) + "\n")

    def plot_loss(self, title: str) -> None:
        """Draw ``loss.png`` from the metrics: every step, and the mean of the last 20."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        steps = [line["step"] for line in self.metrics]
        losses = [line["loss"] for line in self.metrics]
        smooth = [
            sum(w) / len(w) for i in range(len(losses)) if (w := losses[max(0, i - 19) : i + 1])
        ]
        figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
        axes.plot(steps, losses, color="0.75", linewidth=0.8, label="step")
        axes.plot(steps, smooth, color="C0", label="mean of 20 steps")
        axes.set(xlabel="step", ylabel="training loss", title=title)
        axes.legend(frameon=False)
        figure.savefig(self.folder / "loss.png", dpi=120, metadata={"Software": None})
        pyplot.close(figure)


def _step(checkpoint: Path) -> int:
    return int(_CHECKPOINT.fullmatch(checkpoint.name)[1])


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{file}: not readable ({error}); move its folder away") from error


def _without_revisions(settings: dict[str, Any]) -> dict[str, Any]:
    sources = [
        {key: value for key, value in source.items() if key != "revision"}
        for source in settings.get("data", [])
    ]
    return settings | {"data": sources}


def _importance(name: str) -> tuple[bool, bool, str]:
    """Sorts what a user chose before what follows from it: stage, learning rate, data hash."""
    return name.startswith("data"), "." in name, name


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
