"""How far the order of the training rows alone moves a classification score of mteb.

    python benchmarks/row_order.py --orders 100

mteb draws eight training texts a label by position, so the same rows in another order are another
training set. all-MiniLM-L6-v2 is scored on the mirror's MassiveIntent as it is and in random
orders: where order is the only difference, the published score is one of these (the harness proof's
one deviation, see ``docs/harness.md``). The texts are encoded once.
"""

import json
import os
import shutil
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Annotated

import pandas as pd
import typer

from llm2vec.console import run
from llm2vec.data import mirror_folder
from llm2vec.errors import DataError
from llm2vec.paths import ROOT
from llm2vec.provenance import capture_provenance
from llm2vec.registry import Task, get_task
from llm2vec.results import write_atomic

MODEL = "minilm-l6"
OUTPUT = ROOT / "benchmarks" / "results" / "row_order.json"


def reorder(source: Path, root: Path, task: Task, seed: int | None) -> None:
    """The task's data below ``root``, training rows in a random order (None: as they are)."""
    target = root / task.dataset
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    file = target / ("" if task.subset == "default" else task.subset) / "train.parquet"
    if seed is not None:
        pd.read_parquet(file).sample(frac=1, random_state=seed).to_parquet(file, index=False)


def main(
    orders: Annotated[int, typer.Option(help="Random orders to score.")] = 100,
    task: Annotated[str, typer.Option(help="A classification task.")] = (
        "MassiveIntentClassification"
    ),
    output: Annotated[Path, typer.Option(help="JSON to write.")] = OUTPUT,
) -> None:
    """Score every order and write scores and their spread."""
    from llm2vec.encoder import load_encoder
    from llm2vec.mteb_tasks import evaluate_task
    from llm2vec.vectors import Vectors

    spec = get_task(task)
    source = mirror_folder(spec.dataset)
    if source is None:
        raise DataError(f"LLM2VEC_DATA names no mirror that has {spec.dataset}")
    encoder = load_encoder(MODEL, "encoder", device="cpu")
    scores = []
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ["LLM2VEC_DATA"] = str(root / "mirror")
        vectors = Vectors(encoder, ("none",), root / "vectors")
        for seed in (None, *range(orders)):
            reorder(source, root / "mirror", spec, seed)
            (done,), _ = evaluate_task(vectors, spec)
            scores.append(done.score)
            print(f"{'as it is' if seed is None else f'order {seed}':<9} {done.score:.5f}")
    asis, *rest = scores
    made = {
        "benchmark": "row_order", "model": MODEL, "task": task, "as_it_is": asis, "rows": rest,
        "mean": mean(rest), "std": stdev(rest), "low": min(rest), "high": max(rest),
        "provenance": capture_provenance("cpu", "float32", "sdpa").as_dict(),
    }  # fmt: skip
    write_atomic(output, json.dumps(made, indent=1) + "\n")
    print(f"mean {made['mean']:.5f}, standard deviation {made['std']:.5f}")


if __name__ == "__main__":
    run(main)
