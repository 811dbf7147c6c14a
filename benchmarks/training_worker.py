"""This repository's side of ``benchmarks/training.py``; no program of its own.

Its own trainers take the steps; nothing is saved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.protocol import Line, serve, step_clock
from llm2vec.assets import model_folder
from llm2vec.mntp import Masker, MNTPTrainer, make_blocks
from llm2vec.mntp import build as build_mntp
from llm2vec.offline_corpora import training_paragraphs
from llm2vec.prompts import Tokens
from llm2vec.registry import MNTP, SimCSE, get_model, get_variant
from llm2vec.results import write_atomic
from llm2vec.runs import RunFolder
from llm2vec.simcse import Padder, SimCSETrainer, tokenize_sentences
from llm2vec.simcse import build as build_simcse
from llm2vec.stage import Options, Stream
from llm2vec.training import StageTrainer
from llm2vec.wikitext import sentences

HORIZON = 10**6  # of the schedule: the learning rate stays as it is


def settings_of(job: dict[str, Any]) -> MNTP | SimCSE:
    """The registry's settings with the sizes of the benchmark."""
    model, steps = get_model(job["model"]), job["steps"] + 1
    if job["stage"] == "mntp":
        return replace(
            model.mntp, batch_size=job["blocks"], block_size=job["length"], steps=steps,
            schedule_steps=HORIZON,
        )  # fmt: skip
    return replace(model.simcse, batch_size=job["sentences"], steps=steps, schedule_steps=HORIZON)


# --------------------------------------------------------------------------- data
def prepare(job: dict[str, Any], file: str) -> dict[str, Any]:
    """Write samples and batches of a job for both sides; the tokens of each step.

    In a process of its own: neither side carries the memory of the corpus.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_folder(job["model"]))
    settings = settings_of(job)
    needed, paragraphs = settings.steps * settings.batch_size, training_paragraphs()
    if job["stage"] == "mntp":
        samples = make_blocks(paragraphs[: 20 * needed], tokenizer, job["length"], needed)
        batches = mntp_batches(samples[:needed], tokenizer, settings)
        tokens = [sum(map(len, batch["input_ids"])) for batch in batches]
        shared = {"samples": samples[:needed].tolist()}
    else:
        split = [s for p in paragraphs[:needed] for s in sentences(p) if len(s.split()) > 3]
        rows = tokenize_sentences(list(dict.fromkeys(split))[:needed], tokenizer, settings)
        batches = [{"rows": [t.ids for _, t in batch]} for batch in in_order(rows, settings)]
        tokens = [2 * sum(map(len, batch["rows"])) for batch in batches]
        shared = {"samples": [asdict(row) for row in rows]}
    shared |= {"job": job, "batches": batches, "pad": tokenizer.pad_token_id}
    write_atomic(Path(file), json.dumps(shared))
    return {"tokens": tokens}


def in_order(samples: Sequence[Any], settings: MNTP | SimCSE) -> list[list[tuple[int, Any]]]:
    """The (position, sample) pairs of each step, as the trainer takes them."""
    size = settings.batch_size
    stream = Stream(samples, settings.steps * size, settings.seed)
    return [[stream[i] for i in range(step * size, (step + 1) * size)]
            for step in range(settings.steps)]  # fmt: skip


def mntp_batches(
    samples: np.ndarray, tokenizer: PreTrainedTokenizerBase, settings: MNTP
) -> list[dict[str, Any]]:
    """Masked ids and labels of each step; masks depend on the position alone, so ours has them."""
    masked = map(Masker(tokenizer, settings), in_order(samples, settings))
    return [{name: b[name].tolist() for name in ("input_ids", "labels")} for b in masked]


# --------------------------------------------------------------------------- training
def make_trainer(job: dict[str, Any], samples: list[Any], folder: Path) -> StageTrainer:
    """This repository's trainer over the prepared samples."""
    model, settings, run = get_model(job["model"]), settings_of(job), RunFolder(folder, {})
    options = Options(
        dtype=job["dtype"], device="cpu", max_tokens=job["max_tokens"], save_every=HORIZON,
        caching=job["caching"],
    )  # fmt: skip
    if job["stage"] == "mntp":
        stage, tokenizer = build_mntp(model, settings, options)
        micro = max(1, job["max_tokens"] // job["length"])
        blocks = np.asarray(samples, np.int32)
        masker = Masker(tokenizer, settings)
        return MNTPTrainer(stage, blocks, masker, settings, options, run, micro)
    stage, tokenizer, _ = build_simcse(model, get_variant("bi-simcse"), settings, options)
    rows = [Tokens(**sample) for sample in samples]
    return SimCSETrainer(stage, rows, Padder(tokenizer), settings, options, run)


class Side:
    """Handlers of the requests; ``step`` is answered from within the Trainer's loop."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def load(self, file: str, folder: str) -> dict[str, Any]:
        shared = json.loads(Path(file).read_text(encoding="utf-8"))
        self.trainer = make_trainer(shared["job"], shared["samples"], Path(folder) / "ours")
        return {}

    def step(self) -> dict[str, Any]:
        """All steps: each but the last request is read by the clock; this answers ``end``."""
        self.trainer._save_checkpoint = lambda *args, **kwargs: None
        self.trainer.add_callback(step_clock(self.line))
        self.trainer.run.start(0)
        self.trainer.train()
        return {"losses": [line["loss"] for line in self.trainer.run.metrics]}


if __name__ == "__main__":
    line = Line()
    side = Side(line)
    serve({"prepare": prepare, "load": side.load, "step": side.step}, line)
