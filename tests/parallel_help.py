"""An encoder without torch for processes that must start fast, and one that fails on request."""

import os
import signal
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from llm2vec.errors import AdapterError
from llm2vec.registry import POOLINGS, get_model, get_variant


class FakeEncoder:
    """Vectors are hashes of the texts; some texts are orders to fail."""

    embedding_size = 4
    pooling = "mean"
    poolings = POOLINGS
    adapters = ("a" * 64,)
    attention_implementation = "none"
    dtype = "torch.float32"

    def __init__(self, device: str) -> None:
        self.device = device
        self.model, self.variant = get_model("smollm2-135m"), get_variant("uni")
        self.counter = SimpleNamespace(tokens=0, padding=0, passes=0)

    def encode_poolings(self, items: Sequence[Any], poolings: Sequence[str]) -> dict[str, Any]:
        texts = [item if isinstance(item, str) else item[1] for item in items]
        if "raise" in texts:
            raise ValueError("a bug of its own")
        if "exit" in texts:
            os._exit(3)
        if "kill" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        self.counter.tokens += sum(len(text.split()) for text in texts)
        self.counter.passes += 1
        return {p: np.stack([vector_of(item, p) for item in items]) for p in poolings}


def vector_of(item: Any, pooling: str) -> np.ndarray:
    item = ("", item) if isinstance(item, str) else item  # as an encoder takes them for the same
    seed = zlib.crc32(repr((item, pooling)).encode())
    return np.random.default_rng(seed).standard_normal(4).astype(np.float32)


def load_fake(device: str) -> FakeEncoder:
    return FakeEncoder(device)


def load_or_fail(device: str) -> FakeEncoder:
    """The second device has no adapter, the third a bug, the fourth dies."""
    if device == "cpu:1":
        raise AdapterError("no adapter for this one")
    if device == "cpu:2":
        raise KeyError("weights")
    if device == "cpu:3":
        os.kill(os.getpid(), signal.SIGKILL)
    return FakeEncoder(device)


def load_tiny(folder: Path) -> Any:
    """A loader of a tiny model's folder that other processes can use."""
    from llm2vec import LLM2Vec

    return partial(LLM2Vec.from_pretrained, str(folder), dtype="float32")
