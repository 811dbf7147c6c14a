"""How ``encode`` grows with the number of texts, and how long the command line takes to start.

    python -m benchmarks.scale
    python -m benchmarks.scale --texts 1000 --texts 4000 --output build/bench

Short synthetic texts, all different, through a random decoder of two layers behind SmolLM2's
tokenizer: what is measured is everything but a real model's products. Time should grow in
proportion and memory by the output alone; each size runs in a process of its own. The start-up of
``make help`` and of ``--help`` is measured as well: neither waits for torch.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.report import RESULTS, Report
from benchmarks.workers import own, started
from llm2vec.console import run
from llm2vec.paths import ROOT

SEED = 0
SIZES = (1_000, 10_000, 50_000, 100_000, 200_000)
WORDS = (
    "river", "stone", "garden", "letter", "winter", "market", "bridge", "signal", "forest",
    "engine", "mirror", "harbour", "window", "valley", "planet", "teacher", "doctor", "painter",
)  # fmt: skip
COMMANDS = {
    "make help": ["make", "help"],
    "llm2vec --help": [sys.executable, "-m", "llm2vec.cli", "--help"],
    "experiments/04_mteb_subset.py --help": [
        sys.executable, "experiments/04_mteb_subset.py", "--help",
    ],
    "import of the registry": [sys.executable, "-c", "import llm2vec.registry"],
}  # fmt: skip


def synthetic(count: int, seed: int = SEED) -> Iterator[str]:
    """``count`` different short texts of four to nine words and a number."""
    dice = random.Random(seed)
    for number in range(count):
        yield " ".join(dice.choices(WORDS, k=dice.randint(4, 9))) + f" {number}"


def fitted_exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Exponent b of seconds ~ sizes^b by least squares of the logarithms: 1 is linear."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def start_up(times: int) -> list[dict[str, Any]]:
    """Seconds of each command from start to end, the median of a few."""
    rows = []
    for name, command in COMMANDS.items():
        taken = []
        for _ in range(times):
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            taken.append(time.perf_counter() - begin)
        rows.append({"kind": "start", "command": name, "seconds": median(taken), "all": taken})
    return rows


def tiny_encoder() -> Any:
    """A random decoder of two layers behind SmolLM2's tokenizer, bidirectional, mean pooling."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    from llm2vec.assets import model_folder
    from llm2vec.attention import set_attention
    from llm2vec.encoder import LLM2Vec
    from llm2vec.registry import VARIANTS, get_model

    tokenizer = AutoTokenizer.from_pretrained(model_folder("smollm2-135m"))
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    backbone = LlamaModel(config).eval()
    set_attention(backbone, True)
    return LLM2Vec(backbone, tokenizer, model=get_model("smollm2-135m"), variant=VARIANTS["bi"])


def serve_encoding() -> None:
    """The worker: encodes so many texts and says what it took."""
    from benchmarks.protocol import Stopwatch, serve

    encoder = tiny_encoder()
    encoder.encode(list(synthetic(64, seed=1)))

    def encode(count: int) -> dict[str, Any]:
        chosen = list(synthetic(count))
        watch = Stopwatch()
        vectors = encoder.encode(chosen, convert_to_numpy=True)
        return watch.read() | {"output_mb": vectors.nbytes / 2**20}

    serve({"encode": encode})


def main(
    texts: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated.")] = None,
    starts: Annotated[int, typer.Option(min=1, help="Starts of each command.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure encode over the number of texts, and the start-up of commands."""
    if worker:
        serve_encoding()
        return
    sizes = sorted(texts or SIZES)
    report = Report("scale", {"texts": sizes, "starts": starts}, [SEED])
    rows = []
    for size in sizes:
        print(f"encoding {size:,} texts", file=sys.stderr)
        with started({"ours": own("scale", "--worker")}) as sides:
            rows.append(
                {"kind": "encode", "texts": size, **sides["ours"].ask("encode", count=size)}
            )
    seconds = [row["seconds"] for row in rows]
    exponent = fitted_exponent(sizes, seconds) if len(sizes) > 1 else None
    report.write(output, rows=rows + start_up(starts), exponent=exponent)


if __name__ == "__main__":
    run(main)
