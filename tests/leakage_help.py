"""Triples and cosines to try pooling leakage on."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from llm2vec.leakage import Cosines, Triple
from llm2vec.registry import get_variant

UNI, BI, ECHO = get_variant("uni"), get_variant("bi"), get_variant("echo")
TRIPLES = (
    Triple("1", "The quick brown fox", "jumps over the dog.", "leaps above the dog.", "sleeps."),
    Triple("2", "A language model that we know", "reads words.", "sees words.", "is lazy."),
    Triple("3", "Then the other dog", "sleeps.", "rests.", "runs from left to right again."),
)  # fmt: skip


def cosines_of(positive: list[float], negative: list[float]) -> Cosines:
    ids = tuple(str(i) for i in range(len(positive)))
    return Cosines(ids, np.array(positive), np.array(negative), 0, {})


def write_lines(file: Path, *lines: str) -> Path:
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def triple_line(**changes: Any) -> str:
    values = {"id": "x", "a": "It is", "b": "hot.", "c": "warm.", "d": "cold.", "topic": "t"}
    return json.dumps({k: v for k, v in (values | changes).items() if v is not ...})
