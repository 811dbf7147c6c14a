"""The published package's side of ``benchmarks/encode.py``; no program of its own.

    PEER/bin/python benchmarks/published_encode.py FOLDER

Its own loader and ``encode`` with its defaults, but for the longest text: 512 tokens instead of
400, so that nothing is cut on any side.
"""

import sys
from importlib.metadata import version

import numpy as np
import torch
from protocol import Counter, Stopwatch, serve

from llm2vec import LLM2Vec


class Published:
    def __init__(self, folder):
        self.folder = folder

    def load(self, dtype):
        self.encoder = LLM2Vec.from_pretrained(
            self.folder, enable_bidirectional=True, pooling_mode="mean", max_length=512,
            doc_max_length=512, torch_dtype=getattr(torch, dtype),
        )  # fmt: skip
        self.counter = Counter(self.encoder.model)
        names = ("llm2vec", "transformers", "torch")
        return {"versions": {n: version(n) for n in names}, "threads": torch.get_num_threads()}

    def encode(self, texts, save=None):
        self.counter.take()
        watch = Stopwatch()
        vectors = self.encoder.encode(texts, show_progress_bar=False)
        found = watch.read() | self.counter.take()
        if save:
            np.save(save, vectors.numpy())
        return found


if __name__ == "__main__":
    side = Published(sys.argv[1])
    serve({"load": side.load, "encode": side.encode})
