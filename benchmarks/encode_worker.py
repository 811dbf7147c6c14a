"""One side of ``benchmarks/encode.py`` in this repository's environment; no program of its own.

python -m benchmarks.encode_worker ours MODEL
python -m benchmarks.encode_worker sentence-transformers FOLDER
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.protocol import Counter, Handler, Stopwatch, serve
from benchmarks.report import linear_flops
from llm2vec import kernels
from llm2vec.encoder import load_encoder
from llm2vec.registry import MAX_LENGTH

SIZE = 2048  # of the square matrices whose product is the limit
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of states and weights


def rate(work: Callable[[], object], flops: float, seconds: float) -> float:
    """Operations a second of ``work``, repeated for about so long."""
    work()
    begin, times = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        work()
        times += 1
    return times * flops / (time.perf_counter() - begin)


def products(dtype: torch.dtype) -> dict[str, Product]:
    """The products that this machine has: torch's own and, where it works, oneDNN's."""
    found: dict[str, Product] = {"torch": torch.nn.functional.linear}
    return found | ({"onednn": kernels.product} if kernels.works(dtype) else {})


def of_a_layer(
    product: Product, inputs: dict[int, torch.Tensor], weights: Sequence[torch.Tensor]
) -> None:
    """The products of one layer; ``inputs`` by their width."""
    for weight in weights:
        product(inputs[weight.shape[1]], weight)


@torch.inference_mode()
def limits(config: dict[str, Any], dtype: torch.dtype, seconds: float) -> dict[str, Any]:
    """Operations a second of a large square product, and of one layer's products with weights.

    ``square`` and ``layers`` are those of the fastest product, ``by`` has the squares of all.
    """
    square = torch.randn(SIZE, SIZE, dtype=dtype)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = (head * config[f"num_{n}_heads"] for n in ("attention", "key_value"))
    shapes = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries),
              (inner, hidden), (inner, hidden), (hidden, inner)]  # fmt: skip
    weights = [torch.randn(*shape, dtype=dtype) for shape in shapes]
    inputs = {width: torch.randn(SIZE, width, dtype=dtype) for _, width in shapes}
    layer = linear_flops(config | {"num_hidden_layers": 1}) * SIZE

    squares, layers = {}, {}
    for name, product in products(dtype).items():
        squares[name] = rate(partial(product, square, square), 2.0 * SIZE**3, seconds)
        layers[name] = rate(partial(of_a_layer, product, inputs, weights), layer, seconds)
    return {"square": max(squares.values()), "layers": max(layers.values()), "by": squares}


def measure(encode: Callable[..., np.ndarray], counter: Counter, texts: Sequence[str],
            save: str | None = None) -> dict[str, float]:  # fmt: skip
    """Time one call over the texts and count what went through the model."""
    counter.take()
    watch = Stopwatch()
    vectors = encode(list(texts))
    found = watch.read() | counter.take()
    if save:
        np.save(save, vectors)
    return found


class Ours:
    """This repository's encoder."""

    def __init__(self, model: str) -> None:
        self.model = model

    def load(self, dtype: str) -> dict[str, Any]:
        self.encoder = load_encoder(self.model, "bi", dtype=dtype)
        self.encoder.text_max_length = MAX_LENGTH
        self.counter = Counter(self.encoder.backbone)
        self.config = self.encoder.backbone.config.to_dict()
        return {
            "versions": _versions("torch", "transformers"), "threads": torch.get_num_threads(),
            "attention": self.encoder.attention_implementation,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "flops_per_token": linear_flops(self.config),
            "config": {k: v for k, v in self.config.items() if isinstance(v, int)},
        }  # fmt: skip

    def encode(self, **arguments: Any) -> dict[str, float]:
        return measure(partial(self.encoder.encode, convert_to_numpy=True), self.counter,
                       **arguments)  # fmt: skip

    def limit(self, seconds: float = 0.5) -> dict[str, Any]:
        """That of the type in which the products run, which need not be that of the states."""
        layers = (m for m in self.encoder.backbone.modules() if isinstance(m, torch.nn.Linear))
        return limits(self.config, next(layers).weight.dtype, seconds)

    def export(self, folder: str) -> dict[str, Any]:
        from llm2vec.export import export

        export(self.encoder, Path(folder), scores=(), verify=False)
        return {}


class SentenceTransformers:
    """The same weights as sentence-transformers loads and runs them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def load(self, dtype: str) -> dict[str, Any]:
        from sentence_transformers import SentenceTransformer

        self.encoder = SentenceTransformer(
            self.folder, device="cpu", local_files_only=True,
            model_kwargs={"dtype": getattr(torch, dtype)},
        )  # fmt: skip
        self.counter = Counter(self.encoder[0].auto_model)
        return {"versions": _versions("torch", "sentence-transformers"),
                "threads": torch.get_num_threads()}  # fmt: skip

    def encode(self, **arguments: Any) -> dict[str, float]:
        def vectors(texts: Sequence[str]) -> np.ndarray:
            return self.encoder.encode(texts, batch_size=32, show_progress_bar=False)

        return measure(vectors, self.counter, **arguments)


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in packages}


def main(side: str, where: str) -> None:
    """Answer requests; see the driver."""
    found = (Ours if side == "ours" else SentenceTransformers)(where)
    names = [name for name in ("load", "encode", "limit", "export") if hasattr(found, name)]
    handlers: dict[str, Handler] = {name: getattr(found, name) for name in names}
    serve(handlers)


if __name__ == "__main__":
    main(*sys.argv[1:])
