"""A record to write, read, and damage."""

import dataclasses
from typing import Any

from llm2vec.results import Record

HYPERPARAMETERS = {"pooling": "mean", "max_length": 512, "chat": ["[INST] ", " [/INST]"]}
RECORD = Record(
    experiment="mteb_subset",
    model="smollm2-135m",
    variant="bi-mntp",
    pooling="mean",
    task="STSBenchmark",
    metric="cosine_spearman",
    score=0.6203817,
    split="test",
    n=1379,
    model_revision="asset:1",
    dataset={"id": "some/data", "revision": "1", "source": "mirror", "status": "exact"},
    hyperparameters=HYPERPARAMETERS,
    provenance={
        "commit": "0" * 40,
        "dirty": False,
        "command": "python experiments/04_mteb_subset.py",
        "versions": {"torch": "1"},
        "device": "cpu",
        "dtype": "float32",
    },
    cost={"seconds": 1.5, "tokens": 100, "padding_tokens": 3, "tokens_per_second": 66.7},
    interval=(0.6, 0.64),
    scores={"cosine_spearman": 0.6203817, "per_experiment": [{"accuracy": 0.5}]},
    seeds=(42,),
    adapters=("a" * 64,),
)


def changed(**values: Any) -> Record:
    return dataclasses.replace(RECORD, **values)
