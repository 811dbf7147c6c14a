"""Word-level probing: the backbone once, against the backbone at every step (published way).

    python -m benchmarks.word_features
    python -m benchmarks.word_features --sentences 20 --steps 2 --output build/bench
    python -m benchmarks.word_features --accuracy-steps 1500

The published scripts run the frozen LLM in each of 4,000 training steps of each task (8 random
sentences, padded to the longest), over the validation split every 500 steps, and over the test
split padded to 512 tokens. Token counts are exact, from the lengths of all sentences. Times are
measured over ``--steps`` training steps, one test batch and ``--sentences`` random sentences, and
extrapolated by steps, batches and tokens. What the published code spends on merging sub-tokens
word by word and on bfloat16 probes is left out, in its favour.

The features' own speed stands beside the limit of ``benchmarks/encode.py``. ``--accuracy-steps``
trains every task's probe both ways with the same order and seed, and compares the accuracies on
the first ``--sentences`` of the test split; with ``--stored-only`` on states stored as float32 and
float16, without the published way and without timing anything:

    python benchmarks/word_features.py --accuracy-steps 1500 --accuracy-train 1000 --stored-only
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tabulate import tabulate

from benchmarks.encode_worker import limits
from benchmarks.protocol import Stopwatch
from benchmarks.report import RESULTS, Report, linear_flops, share_of_limit
from llm2vec.batching import token_batches
from llm2vec.console import run
from llm2vec.encoder import LLM2Vec, load_encoder
from llm2vec.errors import SettingError
from llm2vec.features import STORED, WordFeatures, compute_states
from llm2vec.probing import ProbeData, predict, probe_batches, train_probe
from llm2vec.registry import PROBE, WORD_TASKS
from llm2vec.words import (
    TAGS,
    Alignment,
    Sentence,
    Tokens,
    alignment_of,
    bounds,
    label_ids,
    load_corpus,
    tokenize,
)

# The released configurations and the defaults of the published Trainer.
STEPS, EVALUATE_EVERY, TEST_BATCH, TEST_WIDTH = 4000, 500, 32, 512


@dataclass
class LiveWords:
    """Words whose features are computed by the backbone whenever they are asked for."""

    encoder: LLM2Vec
    tokens: Sequence[Tokens]
    labels: np.ndarray
    alignment: Alignment
    width: int | None = None
    rows: int = PROBE.batch_size

    def __post_init__(self) -> None:
        self.size = self.encoder.embedding_size
        self.sentences = len(self.tokens)
        self.starts = bounds(len(t.spans["same"]) for t in self.tokens)
        self.threads = torch.get_num_threads()

    def words(self, sentences: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)  # a probe's training keeps itself to one
        chosen = list(sentences)
        parts = [self._batch(chosen[i : i + self.rows]) for i in range(0, len(chosen), self.rows)]
        labels = [self.labels[self.starts[i] : self.starts[i + 1]] for i in chosen]
        torch.set_num_threads(before)
        return torch.cat(parts), torch.from_numpy(np.concatenate(labels))

    @torch.no_grad()
    def _batch(self, chosen: Sequence[int]) -> torch.Tensor:
        tokens = [self.tokens[i] for i in chosen]
        width = self.width or max(len(t.ids) for t in tokens)
        pad = self.encoder.tokenizer.pad_token_id
        ids = torch.tensor([t.ids + [pad] * (width - len(t.ids)) for t in tokens])
        mask = torch.tensor([[1] * len(t.ids) + [0] * (width - len(t.ids)) for t in tokens])
        device = self.encoder.device
        hidden = self.encoder.backbone(input_ids=ids.to(device), attention_mask=mask.to(device))
        states = hidden.last_hidden_state.float().cpu()
        spans = [(row, *span) for row, t in enumerate(tokens) for span in t.spans[self.alignment]]
        return torch.stack([states[row, start:end].mean(0) for row, start, end in spans])


# --------------------------------------------------------------------------- token counts
def padded(lengths: np.ndarray, batches: Sequence[Sequence[int]]) -> int:
    """Tokens of the rectangles that these batches make."""
    return sum(len(batch) * int(lengths[list(batch)].max()) for batch in batches)


def published_tokens(lengths: dict[str, np.ndarray], steps: int, validate: bool) -> dict[str, int]:
    """Tokens, padding included, of the three tasks' training, validation and test runs."""
    train, dev, test = (lengths[split] for split in ("train", "validation", "test"))
    batches = list(probe_batches(len(train), PROBE.batch_size, steps, seed=42))
    real = sum(int(train[b].sum()) for b in batches)
    in_order = [range(i, min(i + 8, len(dev))) for i in range(0, len(dev), 8)]
    passes = steps // EVALUATE_EVERY if validate else 0
    counts = {
        "train": padded(train, batches),
        "validation": passes * padded(dev, in_order),
        "test": TEST_WIDTH * len(test),
    }
    counts["real"] = real + passes * int(dev.sum()) + int(test.sum())
    return {name: len(WORD_TASKS) * count for name, count in counts.items()}


# --------------------------------------------------------------------------- measuring
def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def features_of(encoder: LLM2Vec, tokens: Sequence[Tokens], stored: str = STORED) -> WordFeatures:
    """Features computed anew, whatever the cache holds."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "states.bin"
        meta = compute_states(encoder, [t.ids for t in tokens], file, stored=stored)
        states = np.fromfile(file, dtype=stored).reshape(meta["shape"])
    return WordFeatures(states, tokens, meta["cost"])


@dataclass(frozen=True)
class Measured:
    """Seconds on this machine for one unit of each kind of work, and what the features took."""

    padded_token: float  # published training and validation, padding included
    test_batch: float  # published test: 32 sentences padded to 512
    token: float  # here
    probe_step: float  # here
    peak_mb: float  # here
    share_of_limit: float  # here


def measure(
    encoder: LLM2Vec,
    corpus: dict[str, list[Sentence]],
    tokens: dict[str, list[Tokens]],
    sentences: int,
    steps: int,
) -> Measured:
    """Time a few steps of each way on POS, whose probe is the largest."""
    alignment, classes = alignment_of(encoder.variant), len(TAGS["pos"])
    labels = {split: label_ids("pos", corpus[split]) for split in ("train", "test")}
    live = LiveWords(encoder, tokens["train"], labels["train"], alignment)
    live.words(range(8))  # warm-up
    training = seconds(lambda: train_probe(live, classes, replace(PROBE, steps=steps)))
    batches = list(probe_batches(live.sentences, PROBE.batch_size, steps, seed=42))
    wide = LiveWords(encoder, tokens["test"], labels["test"], alignment, TEST_WIDTH, TEST_BATCH)

    chosen = np.random.default_rng(0).permutation(live.sentences)[:sentences]
    config, watch = encoder.backbone.config.to_dict(), Stopwatch()
    sample = features_of(encoder, [tokens["train"][i] for i in chosen])
    peak = watch.read()["peak_mb"]
    limit = limits(config, encoder.dtype, 0.5)["square"]
    through = sample.cost["tokens"] * linear_flops(config)
    sample_labels = label_ids("pos", [corpus["train"][i] for i in chosen])
    data = ProbeData(sample, alignment, sample_labels, 0, len(chosen))
    return Measured(
        padded_token=training / padded(lengths_of(tokens["train"]), batches),
        test_batch=seconds(lambda: wide.words(range(TEST_BATCH))),
        token=sample.cost["seconds"] / sample.cost["tokens"],
        probe_step=seconds(lambda: train_probe(data, classes, replace(PROBE, steps=200))) / 200,
        peak_mb=peak,
        share_of_limit=share_of_limit(through, sample.cost["seconds"], limit),
    )


def lengths_of(tokens: Sequence[Tokens]) -> np.ndarray:
    return np.array([len(t.ids) for t in tokens])


def compare_time(
    lengths: dict[str, np.ndarray], unit: Measured, max_tokens: int
) -> list[dict[str, Any]]:
    """Tokens and seconds of each way, extrapolated to the whole of the three tasks."""
    rows = []
    for name, steps, validate in (
        (f"published: {STEPS:,} steps, 1 seed", STEPS, True),
        (f"published way, {PROBE.steps:,} steps, no validation", PROBE.steps, False),
    ):
        through = published_tokens(lengths, steps, validate)
        total = sum(through[part] for part in ("train", "validation", "test"))
        cost = unit.padded_token * (total - through["test"])
        cost += unit.test_batch * through["test"] / (TEST_BATCH * TEST_WIDTH)
        rows.append(_row(name, total, total - through["real"], cost))
    everything = np.concatenate(list(lengths.values()))
    real = int(everything.sum())
    total = padded(everything, token_batches(everything.tolist(), max_tokens))
    for name, probes in (("here: 1 seed", 3), ("here: 3 seeds, both alignments", 18)):
        probing = probes * PROBE.steps * unit.probe_step
        rows.append(_row(name, total, total - real, unit.token * real, probing))
    return rows


def _row(
    way: str, tokens: int, padding: int, backbone: float, probes: float | None = None
) -> dict[str, Any]:
    return {"way": way, "tokens": int(tokens), "padding": int(padding), "here": probes is not None,
            "backbone_seconds": backbone, "probe_seconds": probes,
            "seconds": backbone + (probes or 0.0)}  # fmt: skip


def accuracies(
    encoder: LLM2Vec,
    corpus: dict[str, list[Sentence]],
    steps: int,
    stored: Sequence[str],
    live: bool = True,
) -> list[dict[str, Any]]:
    """Rows of accuracies: probes trained on live states and on stored ones, same order and seed."""
    everything = [s for split in corpus.values() for s in split]
    tokens = tokenize(encoder.tokenizer, everything, PROBE.max_length)
    edges = bounds(len(split) for split in corpus.values())
    alignment = alignment_of(encoder.variant)
    kept = {name: features_of(encoder, tokens, name) for name in stored}
    rows = []
    for task in WORD_TASKS:
        labels = {split: label_ids(task, sentences) for split, sentences in corpus.items()}
        spans = dict(zip(corpus, pairwise(edges), strict=True))
        ways = {"at every step": {
            split: LiveWords(encoder, tokens[slice(*spans[split])], labels[split], alignment)
            for split in corpus
        }} if live else {}  # fmt: skip
        ways |= {name: {
            split: ProbeData(features, alignment, labels[split], *spans[split])
            for split in corpus
        } for name, features in kept.items()}  # fmt: skip
        row: dict[str, Any] = {"accuracy": task}
        for name, data in ways.items():
            probe = train_probe(data["train"], len(TAGS[task]), replace(PROBE, steps=steps))
            right = (predict([probe], data["test"])[0] == labels["test"]).mean()
            row[name] = 100 * float(right)
        rows.append(row)
    return rows


def main(
    model: Annotated[str, typer.Option(help="Name in the registry.")] = "smollm2-135m",
    variant: Annotated[str, typer.Option(help="uni, bi, bi-mntp, ..., encoder.")] = "uni",
    sentences: Annotated[int, typer.Option(help="Sentences measured.")] = 500,
    steps: Annotated[int, typer.Option(help="Published training steps measured.")] = 20,
    accuracy_steps: Annotated[int, typer.Option(help="Compare accuracies; 0: do not.")] = 0,
    accuracy_train: Annotated[int, typer.Option(help="Training sentences for that.")] = 14_041,
    stored_only: Annotated[bool, typer.Option(help="Accuracies of stored states alone.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Print tokens, seconds and, if asked, accuracies of both ways."""
    if stored_only and not accuracy_steps:
        raise SettingError("--stored-only compares accuracies: give --accuracy-steps")
    encoder = load_encoder(model, variant, device="cpu")
    settings = {"model": model, "variant": variant, "sentences": sentences, "steps": steps,
                "dtypes": [encoder.precision], "accuracy_steps": accuracy_steps}  # fmt: skip
    report = Report("word_features", settings, [0, 42])
    corpus, source = load_corpus("conll2003")
    compared = []
    if accuracy_steps:
        part = {"train": corpus["train"][:accuracy_train], "test": corpus["test"][:sentences]}
        compared = accuracies(encoder, part, accuracy_steps, ("float32", STORED), not stored_only)
        print(tabulate(compared, "keys", tablefmt="github", floatfmt=".2f"))
    if stored_only:
        return
    tokens = {s: tokenize(encoder.tokenizer, c, PROBE.max_length) for s, c in corpus.items()}
    unit = measure(encoder, corpus, tokens, sentences, steps)
    lengths = {split: lengths_of(rows) for split, rows in tokens.items()}
    rows = compare_time(lengths, unit, encoder.max_tokens)
    report.write(
        output, rows=rows, measured=asdict(unit), accuracies=compared, dataset=source.as_dict()
    )


if __name__ == "__main__":
    run(main)
