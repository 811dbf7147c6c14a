"""Records with made-up scores, for the tests of `analysis`."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from llm2vec.registry import POOLINGS, SUITES, WORD_TASKS
from llm2vec.registry_sink import CONTROL, INSTRUCTED, PLAIN
from llm2vec.results import NONE, Record, write_record

PROVENANCE = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "command": "python experiments/04_mteb_subset.py",
    "started": "2026-01-02T03:04:05+00:00",
    "versions": {},
    "device": "cpu",
    "dtype": "float32",
}
BASE = {"uni": 0.40, "bi": 0.30, "bi-mntp": 0.45, "bi-mntp-simcse": 0.55, "echo": 0.42}
BONUS = {"eos": -0.10, "mean": 0.0, "weighted_mean": 0.01}


def make_record(
    experiment: str,
    model: str,
    variant: str,
    pooling: str,
    task: str,
    score: float,
    **changes: Any,
) -> Record:
    values: dict[str, Any] = {
        "metric": "accuracy",
        "split": "test",
        "n": 100,
        "model_revision": "abc",
        "dataset": {"id": "some/data", "revision": "1", "source": "mirror", "status": "exact"},
        "hyperparameters": {"max_length": 512},
        "provenance": PROVENANCE,
        "cost": {"seconds": 2.0, "tokens": 1000, "padding_tokens": 10, "tokens_per_second": 500.0},
    }
    return Record(experiment, model, variant, pooling, task, score=score, **{**values, **changes})


def add(root: Path, *axes: Any, **changes: Any) -> Path:
    with mock.patch("os.fsync"):  # hundreds of records; no test here is about a crash
        return write_record(make_record(*axes, **changes), root)


def add_suite(root: Path, model: str, suite: str, experiment: str = "mteb_subset") -> None:
    """Every variant of `BASE` and every pooling over a suite; scores depend on the task, too."""
    for variant, base in BASE.items():
        for pooling in POOLINGS:
            for index, task in enumerate(SUITES[suite]):
                # LLM2Vec is best with the mean, causal variants with the weighted mean.
                bonus = BONUS[pooling] * (-1 if "mntp" in variant and pooling != "eos" else 1)
                score = base + bonus + 0.01 * index
                interval = (score - 0.02, score + 0.02)
                add(root, experiment, model, variant, pooling, task, score, interval=interval)


def add_words(root: Path, model: str) -> None:
    accuracies = {"uni": 0.90, "bi": 0.85, "bi-mntp": 0.92, "bi-mntp-simcse": 0.91}
    for variant, base in accuracies.items():
        for index, task in enumerate(WORD_TASKS):
            scores = {"accuracy": {"mean": base, "std": 0.002, "per_seed": [base] * 3}}
            if task != "pos":
                scores["entity_f1"] = {"mean": base - 0.1, "std": 0.003, "per_seed": [base] * 3}
            score = base + 0.01 * index
            axes = ("word_probing", model, variant, NONE, task, score)
            add(root, *axes, scores=scores, seeds=(42, 43, 44))
            other = "same" if "mntp" in variant else "previous"
            add(root, *axes[:-1], score - 0.05, scores=scores, setting=other)


def add_leakage(root: Path, model: str, n: int = 60) -> None:
    generator = np.random.default_rng(0)
    for variant, gap in (("uni", 0.0), ("bi", 0.01), ("bi-mntp", 0.08), ("bi-mntp-simcse", 0.12)):
        noise = 0.0 if variant == "uni" else 0.03
        negative = (1.0 if variant == "uni" else 0.8) - noise * generator.random(n)
        positive = negative + gap + noise * generator.normal(size=n) * 0.5
        gaps = positive - negative
        scores = {
            "cosine_positive": float(positive.mean()),
            "cosine_negative": float(negative.mean()),
            "gap": float(gaps.mean()),
            "gap_interval": [float(gaps.mean()) - 0.005, float(gaps.mean()) + 0.005],
            "p": 1.0 if variant == "uni" else 1e-6,
        }
        path = add(
            root, "pooling_leakage", model, variant, NONE, "triples", float((gaps > 0).mean()),
            n=n, scores=scores,
        )  # fmt: skip
        frame = pd.DataFrame({"id": range(n), "cos_pos": positive, "cos_neg": negative})
        frame.to_parquet(path.with_suffix(".parquet"))


def add_layers(root: Path, model: str, level: float = 0.5, layers: int = 13) -> None:
    paragraphs, positions = 5, 40
    generator = np.random.default_rng(1)
    depth = np.linspace(0, 1, layers)[None, :, None]
    similarity = 1 - (1 - level) * depth + 0.03 * generator.normal(size=(paragraphs, 1, positions))
    similarity = np.clip(similarity, -1, 1)
    similarity[:, 0] = 1
    similarity[:, :, 0] = 1
    for index in range(paragraphs):
        similarity[index, :, positions - 2 * index :] = np.nan
    mean = np.nanmean(similarity, axis=(0, 2))
    score = float(np.nanmean(similarity[:, 1:]))
    scores = {"cosine": score, "cosine_without_first": score - 0.01, "mean": mean.tolist()}
    path = add(
        root, "layer_similarity", model, "bi", NONE, "wikipedia", score, n=paragraphs,
        scores=scores, interval=(score - 0.01, score + 0.01),
        hyperparameters={"first_positions": 4},
    )  # fmt: skip
    np.savez(path.with_suffix(".npz"), similarity=similarity.astype(np.float32))


def add_sink(root: Path, model: str, variant: str = "bi") -> None:
    """The sink pulls the pairs down without an instruction; leaving it out brings them up."""
    for task in ("STSBenchmark", "triples"):
        for left in (*PLAIN, *(INSTRUCTED + CONTROL if task == "STSBenchmark" else ())):
            plain = not left.instruction
            gain = 0.04 * min(left.first, 1) if plain else -0.01 * left.first * (left.of == "text")
            scores: dict[str, Any] = {
                "difference": gain, "difference_interval": [gain - 0.01, gain + 0.01],
            }  # fmt: skip
            if task == "triples":
                scores["gap"] = 0.002 + gain
            else:
                scores["first_position"] = {
                    "norm_ratio": 1.25, "norm_ratio_by_layer": [2.0, 300.0, 250.0],
                    "largest_ratio_by_layer": [310.0, 300.0, 250.0], "share": 0.3,
                    "even_share": 0.08,
                }  # fmt: skip
            seconds = 10.0 if plain else 20.0
            score = (0.30 if plain else 0.45) + gain
            add(root, "attention_sink", model, variant, "mean", task, score, setting=left.setting,
                scores=scores, cost={"seconds": seconds, "tokens": 500, "padding_tokens": 0},
            )  # fmt: skip


def add_everything(root: Path) -> None:
    """Records of every experiment, for two of our models and one of the paper's."""
    for model in ("smollm2-135m", "s-llama-1.3b"):
        add_words(root, model)
        add_leakage(root, model)
        add_layers(root, model, level=0.4 if model == "smollm2-135m" else 0.6)
    add_layers(root, "mistral-7b", level=0.95)
    add_sink(root, "smollm2-135m")
    add_suite(root, "smollm2-135m", "exact8")
    add_suite(root, "smollm2-135m", "offline", "offline_suite")
    add_suite(root, "s-llama-1.3b", "subset")
    for task, score in (("STSBenchmark", 0.82032), ("MassiveIntentClassification", 0.66)):
        add(root, "mteb_subset", "minilm-l6", "encoder", NONE, task, score)
    for index, task in enumerate(SUITES["offline"]):
        add(root, "offline_suite", "minilm-l6", "encoder", NONE, task, 0.5 + 0.01 * index)
    add(
        root, "mteb_subset", "smollm2-135m", "uni", "mean", "TwentyNewsgroupsClustering", 0.3,
        dataset={"id": "x", "revision": "1", "source": "mirror", "status": "reconstructed"},
    )  # fmt: skip
    for setting in ("published", "bfloat16"):
        add(root, "mteb_subset", "smollm2-135m", "uni", "mean", "SICK-R", 0.41, setting=setting)
