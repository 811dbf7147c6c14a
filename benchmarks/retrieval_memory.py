"""Memory of retrieval against the size of the corpus: flat, apart from what is put out.

    python -m benchmarks.retrieval_memory                                # 10,000 to 200,000
    python -m benchmarks.retrieval_memory --sizes 10000 --sizes 1000000 --output build/bench

Synthetic passages of random words go the whole way of a real task: a mirror's parquet files, our
encoder (a tiny random Llama), vectors on disk, mteb's chunked search, scores. Each size runs in a
process of its own, whose peak resident memory is what the system counted. Stated beside it is what
grows with the corpus in any case: its texts in memory, and the vectors on disk (the output), which
are as long as real ones: were they all held, the peak would show it.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from benchmarks.report import RESULTS, Report
from llm2vec.console import run
from llm2vec.paths import ROOT
from llm2vec.registry import get_model, get_task, get_variant

TASK = "SciFact"  # only its name and layout: a retrieval task as any
WORDS, LENGTH, QUERIES = 2000, 12, 100
HIDDEN = 512  # of the size of real vectors: held in memory, those of 200,000 passages are 410 MB
SIZES = (10_000, 50_000, 200_000)


# --------------------------------------------------------------------------- the corpus
def write_corpus(root: Path, size: int) -> int:
    """A mirror with one task of so many passages; returns the bytes of their texts."""
    rng = np.random.default_rng(size)
    folder = root / get_task(TASK).dataset
    words = np.array([f"w{i:04d}" for i in range(WORDS)])
    texts = [" ".join(row) for row in words[rng.integers(0, WORDS, (size, LENGTH))]]
    ids = [f"d{i}" for i in range(size)]
    found = rng.choice(size, QUERIES, replace=False)
    tables = {
        "corpus/corpus": {"_id": ids, "text": texts},
        "queries/queries": {
            "_id": [f"q{i}" for i in range(QUERIES)],
            "text": [" ".join(texts[i].split()[:LENGTH // 2]) for i in found],
        },
        "qrels/test": {
            "query-id": [f"q{i}" for i in range(QUERIES)],
            "corpus-id": [ids[i] for i in found], "score": [1] * QUERIES,
        },
    }  # fmt: skip
    for name, columns in tables.items():
        file = folder / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(file)
    return sum(map(len, texts))


# --------------------------------------------------------------------------- one process
def tiny_encoder() -> Any:
    """A random one-layer Llama over a vocabulary of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    from llm2vec.attention import set_attention
    from llm2vec.encoder import LLM2Vec

    vocabulary = {w: i for i, w in enumerate(["<pad>", *(f"w{i:04d}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary | {"<unk>": len(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    backbone = LlamaModel(LlamaConfig(
        vocab_size=len(vocabulary) + 1, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN,
        num_hidden_layers=1, num_attention_heads=8, max_position_embeddings=512,
    )).eval()  # fmt: skip
    set_attention(backbone, True)
    return LLM2Vec(
        backbone,
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"),
        model=get_model("smollm2-135m"),
        variant=get_variant("bi"),
    )


def measure(folder: Path) -> dict[str, float]:
    """Evaluate the corpus of ``LLM2VEC_DATA``; peak memory of this process in bytes."""
    import torch

    from llm2vec.mteb_tasks import evaluate_task
    from llm2vec.vectors import Vectors

    torch.set_num_threads(1)
    vectors = Vectors(tiny_encoder(), ("mean",), folder)
    before = _peak()
    started = time.perf_counter()
    (done,), _ = evaluate_task(vectors, get_task(TASK))
    return {
        "seconds": time.perf_counter() - started,
        "before": before,
        "peak": _peak(),
        "vectors": sum(p.stat().st_size for p in folder.rglob("*.npy")),
        "tokens": done.tokens,
    }


def _peak() -> int:
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes


def in_a_process(size: int) -> dict[str, float]:
    """One size from scratch: corpus, process, measurement."""
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        texts = write_corpus(root / "mirror", size)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.retrieval_memory", "--measure",
             str(root / "vectors")],
            env=dict(os.environ, LLM2VEC_DATA=str(root / "mirror"), OMP_NUM_THREADS="1"),
            cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    return {"passages": size, "texts": texts} | json.loads(done.stdout.splitlines()[-1])


# --------------------------------------------------------------------------- command line
def main(
    sizes: Annotated[list[int] | None, typer.Option(help="Passages; may be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
    measure_here: Annotated[Path | None, typer.Option("--measure", hidden=True)] = None,
) -> None:
    """Measure each size and write the table with its provenance."""
    if measure_here is not None:
        print(json.dumps(measure(measure_here)))
        return
    chosen = sorted(sizes or SIZES)
    report = Report("retrieval_memory", {"sizes": chosen, "hidden_size": HIDDEN}, chosen)
    rows = []
    for size in chosen:
        print(f"searching {size:,} passages", file=sys.stderr)
        rows.append(in_a_process(size))
    report.write(output, rows=rows)


if __name__ == "__main__":
    run(main)
