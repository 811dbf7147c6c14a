"""Ablations and sensitivity: small training runs that vary one thing, each measured and recorded.

Masking probability and style follow paper D.1.1 (SICK-R, MNTP's adapter alone, mean pooling);
learning rate, steps, attention dropout and pooling over padding are questions of this project.
What runs there are is data (:mod:`llm2vec.registry_ablations`); here they are trained, measured
and written as ``raw/ablations/{model}/{variant}/{pooling}/{task}@{run}.json``.

    python experiments/08_ablations.py --group simcse-lr

Runs are kept below ``$LLM2VEC_CHECKPOINTS/ablations/`` by the hash of what decides them, so two
groups share a run, and a longer run goes on from a shorter one, as if never interrupted. A record
is done when its hyperparameters are those of a run made now: checkpoints may be deleted.
Deliberately smaller than the paper's: budgets, and a drawn part of each test set (the same items
for every run, so that differences are paired).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from llm2vec import corpora
from llm2vec.adapters import adapter_folder, adapter_hash
from llm2vec.attention import set_attention
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import SettingError
from llm2vec.evaluation import hyperparameters as evaluation_settings
from llm2vec.evaluation import plan as evaluation_plan
from llm2vec.loading import load_backbone, merge_adapter
from llm2vec.mntp import evaluate_masked_accuracy, make_blocks, train_mntp
from llm2vec.paths import checkpoints_dir
from llm2vec.prompts import format_instruction
from llm2vec.provenance import capture_provenance, git_state
from llm2vec.registry import (
    MNTP,
    Model,
    Variant,
    get_model,
    get_task,
    get_variant,
    settings_dict,
)
from llm2vec.registry_ablations import WIKITEXT, Ablation, Measured
from llm2vec.representations import cost, revision_of
from llm2vec.results import NONE, Key, Record, hash_of, is_done, write_record
from llm2vec.simcse import train_simcse
from llm2vec.stage import Options, Settings, with_overrides
from llm2vec.sts_pairs import draw_pairs

EXPERIMENT, POOLING = "ablations", "mean"
BLOCK, MASK_PROBABILITY, SEED = 128, 0.2, 42  # of the measurements, the same for every run
# For the estimate of costs: tokens of a sentence, of a pair of texts with their instruction; tokens
# per second of training and of measuring on two CPU cores.
SENTENCE, PAIR, TRAINING_SPEED, MEASURING_SPEED = 35, 40, 240, 235


# --------------------------------------------------------------------------- one run
@dataclass(frozen=True)
class Run:
    """An ablation of a model: ``settings`` of its training (None: untrained), ``merged`` before."""

    model: Model
    ablation: Ablation
    settings: Settings | None
    options: Options
    merged: tuple[Path, ...] = ()

    @property
    def variant(self) -> Variant:
        return get_variant(self.ablation.variant)

    @property
    def training(self) -> dict[str, Any]:
        """What decides the trained weights, besides code and text; empty for the untrained."""
        if self.settings is None:
            return {}
        return {
            "stage": self.variant.adapter,
            "dtype": self.options.dtype,
            "merged_before": [adapter_hash(folder) for folder in self.merged],
            **settings_dict(self.settings),
        }

    @property
    def folder(self) -> Path:
        """Folder of the trained adapter; other numbers of steps of the same run lie beside it."""
        same = {name: value for name, value in self.training.items() if name != "steps"}
        root = checkpoints_dir() / EXPERIMENT / self.model.name / str(self.variant.adapter)
        return root / hash_of(same) / f"steps-{self.settings.steps}"

    def key(self, measured: Measured) -> Key:
        """Place of the record."""
        pooling = NONE if measured.task == WIKITEXT else POOLING
        return Key(
            EXPERIMENT, self.model.name, self.variant.name, pooling, measured.task,
            self.ablation.name,
        )  # fmt: skip

    def hyperparameters(self, measured: Measured) -> dict[str, Any]:
        """What decides the score: the training, what it varies, and the measurement."""
        if measured.task == WIKITEXT:
            how = {
                "block_size": BLOCK, "mask_probability": MASK_PROBABILITY, "masking": "all",
                "attention": self.variant.attention, "dtype": self.model.dtype,
                "model": self.model.hub_id, "model_revision": revision_of(self.model),
            }  # fmt: skip
        else:
            suite = evaluation_plan(
                self.model.name, self.variant.name, "full", Path(), task=measured.task,
                pooling=POOLING,
            )  # fmt: skip
            how = evaluation_settings(suite, get_task(measured.task), POOLING)
        how |= {"split": measured.split, "items": measured.items, "seed": SEED}
        return {"varied": dict(self.ablation.varied), "training": self.training, "measured": how}

    def missing(self, results: Path) -> list[Measured]:
        """Measurements without a valid record of these hyperparameters."""
        return [
            m
            for m in self.ablation.measured
            if not is_done(self.key(m), results, self.hyperparameters(m), None)
        ]


def plan(model: str, ablations: Sequence[Ablation], device: str | None = None) -> list[Run]:
    """Runs of a model; names, values and adapters are checked before anything is loaded."""
    spec = get_model(model)
    if spec.kind != "decoder":
        raise SettingError(f"{model} is an encoder; ablations train a decoder of the registry")
    runs = []
    for ablation in ablations:
        stages, settings, merged = get_variant(ablation.variant).stages, None, ()
        if stages:
            settings = with_overrides(_registry(spec, stages), **ablation.base, **ablation.varied)
        if "mntp" in stages[:-1]:
            merged = (adapter_folder(spec, "mntp"),)
        runs.append(Run(spec, ablation, settings, _options(device), merged))
    return runs


def _options(device: str | None) -> Options:
    """Small and often on a CPU, where a run takes minutes; on a GPU, memory for time."""
    options = Options(device=device, save_every=10)
    return options if options.on_cpu else replace(options, save_every=100, caching=False)


def _registry(model: Model, stages: Sequence[str]) -> Settings:
    """The model's own settings of the last stage."""
    settings = getattr(model, stages[-1])
    if settings is None:
        raise SettingError(f"the registry has no {stages[-1]} setting for {model.name}")
    return settings


def execute(runs: Sequence[Run], results: Path) -> int:
    """Train and measure what is missing, and write the records; returns how many were written."""
    git_state()  # of the code that runs now, whatever is edited meanwhile
    written = 0
    for run in runs:
        missing = run.missing(results)
        folder = train(run) if missing else None
        for measured in missing:
            record = measure(run, measured, folder)
            write_record(record, results)
            written += 1
            _say(f"{run.ablation.name}: {measured.task} {measured.split} {100 * record.score:.2f}")
    return written


# --------------------------------------------------------------------------- training
def train(run: Run) -> Path | None:
    """Folder of the trained adapter; None for the untrained model. A finished run is left alone."""
    if run.settings is None:
        return None
    _go_on_from_shorter(run.folder, run.settings.steps)
    registry = _registry(run.model, run.variant.stages)
    common = (run.settings, registry, run.folder, run.options)
    if run.variant.stages[-1] == "mntp":
        return train_mntp(run.model, *common, accuracy=False)
    return train_simcse(run.model, run.variant, *common)


def _go_on_from_shorter(folder: Path, steps: int) -> None:
    """Take over the checkpoint of the longest finished run with fewer steps, if there is one."""
    shorter = {n: p for n, p in _finished(folder.parent) if n < steps and (p / "run").is_dir()}
    if not shorter or (folder / "run").exists() or (folder / "provenance.json").exists():
        return
    origin = shorter[max(shorter)]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(origin / "metrics.jsonl", folder)
    (origin / "run").replace(folder / "run")


def _finished(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("steps-*"):
        if (path / "provenance.json").exists():
            yield int(path.name.removeprefix("steps-")), path


# --------------------------------------------------------------------------- measuring
def measure(run: Run, measured: Measured, folder: Path | None) -> Record:
    """The record of one measurement of a trained (``folder``) or untrained model."""
    folders = [*run.merged, *([folder] if folder else [])]
    score = _masked_accuracy if measured.task == WIKITEXT else _spearman
    values = score(run, measured, folders)
    key, settings = run.key(measured), run.hyperparameters(measured)
    values["scores"]["training"] = _trained(folder) if folder else {}
    return Record(
        **asdict(key),
        split=measured.split,
        seeds=(SEED,),
        model_revision=revision_of(run.model),
        adapters=tuple(adapter_hash(path) for path in folders),
        hyperparameters=settings,
        **values,
    )


def _trained(folder: Path) -> dict[str, Any]:
    """What the adapter's provenance says of its training."""
    note = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    names = ("epochs", "samples", "tokens", "seconds", "final_loss", "data", "departures")
    state = ("commit", "dirty", "commit_source")  # the last where git did not say the commit
    more = {name: note["provenance"][name] for name in state if name in note["provenance"]}
    more |= {"data_hash": note["settings"]["data_hash"]}
    return {name: note[name] for name in names} | more


def _backbone(run: Run, folders: Sequence[Path], head: bool) -> tuple[Any, Any]:
    """Backbone (or, with ``head``, language model) with the adapters merged, and tokenizer."""
    model, tokenizer = load_backbone(run.model.name, device=run.options.device, head=head)
    set_attention(model, run.variant.attention == "bidirectional")
    for folder in folders:
        if head:
            merged = merge_adapter(model.base_model, folder, run.model.name)
            setattr(model, model.base_model_prefix, merged)
        else:
            model = merge_adapter(model, folder, run.model.name)
    return model, tokenizer


def _origin(model: Any) -> dict[str, Any]:
    dtype = str(model.dtype).removeprefix("torch.")
    return capture_provenance(
        str(model.device), dtype, str(model.config._attn_implementation)
    ).as_dict()


def _masked_accuracy(run: Run, measured: Measured, folders: Sequence[Path]) -> dict[str, Any]:
    """Accuracy on masked tokens of the first blocks, with Wilson's interval."""
    model, tokenizer = _backbone(run, folders, head=True)
    texts, source = corpora.wikitext(measured.split)
    blocks = make_blocks(texts, tokenizer, BLOCK, needed=measured.items)[: measured.items]
    origin = _origin(model)  # now: what it says of time is when measuring began
    began = time.perf_counter()
    found = evaluate_masked_accuracy(
        model, tokenizer, blocks, MASK_PROBABILITY, SEED, mask_token=run.model.mntp.mask_token
    )
    seconds = time.perf_counter() - began
    right = round(found["accuracy"] * found["n"])
    bounds = binomtest(right, found["n"]).proportion_ci(method="wilson")
    return {
        "metric": "masked_accuracy",
        "score": found["accuracy"],
        "interval": (bounds.low, bounds.high),
        "scores": {"loss": found["loss"], "interval": "Wilson"},
        "n": found["n"],
        "dataset": source.as_dict(),
        "provenance": origin,
        "cost": cost(seconds, blocks.size),
    }


def _spearman(run: Run, measured: Measured, folders: Sequence[Path]) -> dict[str, Any]:
    """Spearman correlation of cosine and gold score on the drawn pairs of an STS task."""
    backbone, tokenizer = _backbone(run, folders, head=False)
    encoder = LLM2Vec(
        backbone, tokenizer, model=run.model, variant=run.variant, pooling_mode=POOLING
    )
    task = get_task(measured.task)
    pairs = draw_pairs(task, measured.split, measured.items, SEED)
    instruction = format_instruction(task.instruction)
    texts = [(instruction, text) for text in pairs.texts]
    origin = _origin(backbone)
    began = time.perf_counter()
    vectors = encoder.encode_poolings(texts, (POOLING,), show_progress_bar=True)[POOLING]
    seconds = time.perf_counter() - began
    score, bounds = pairs.spearman(pairs.similarity(vectors))
    return {
        "metric": task.metric,
        "score": score,
        "interval": (bounds.low, bounds.high),
        "scores": {"bootstrap": bounds.as_dict()},
        "n": len(pairs),
        "dataset": pairs.source.as_dict(),
        "provenance": origin,
        "cost": cost(seconds, encoder.counter.tokens, encoder.counter.padding),
    }


# --------------------------------------------------------------------------- what it will cost
def overview(runs: Sequence[Run], results: Path) -> list[str]:
    """A line per run: what is missing, and the estimated minutes on two CPU cores; the sum last."""
    lines, total, reached = [], 0.0, dict[Path, int]()
    for run in runs:
        missing = run.missing(results)
        tokens = 0
        if run.settings and missing:
            shared = run.folder.parent
            before = [n for n, _ in _finished(shared) if n <= run.settings.steps]
            first = max([*before, reached.get(shared, 0)])
            tokens = max(0, run.settings.steps - first) * _tokens_a_step(run.settings)
            reached[shared] = run.settings.steps
        sizes = [m.items * (BLOCK if m.task == WIKITEXT else PAIR) for m in missing]
        minutes = (tokens / TRAINING_SPEED + sum(sizes) / MEASURING_SPEED) / 60
        what = ", ".join(f"{m.task} {m.split}" for m in missing) or "done"
        lines.append(
            f"{run.ablation.name:<28} {what:<42} {tokens:>7} tokens to train on, {minutes:5.1f} min"
        )
        total += minutes
    return [*lines, f"about {total:.0f} minutes on two CPU cores"]


def _tokens_a_step(settings: Settings) -> int:
    if isinstance(settings, MNTP):
        return settings.batch_size * settings.block_size
    return settings.batch_size * 2 * min(SENTENCE, settings.max_length)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
