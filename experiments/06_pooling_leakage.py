"""Pooling leakage (paper 4.1, Figures 4 and 7): does a pooled beginning know what follows it?

    python experiments/06_pooling_leakage.py --model smollm2-135m --variant bi

writes results/raw/pooling_leakage/MODEL/VARIANT/none/triples.json and, beside it, the cosines of
every triple in triples.parquet. `--triples FILE` (JSONL: id, a, b, c, d) writes triples@NAME.
What differs from the paper on purpose: see llm2vec/leakage.py.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llm2vec.console import run
from llm2vec.paths import results_dir
from llm2vec.registry import DTYPES

RESULTS = results_dir()
Adapters = Literal["own", "published"]


def main(
    model: Annotated[str, typer.Option(help="Name in the registry.")],
    variant: Annotated[str, typer.Option(help="uni, bi, bi-mntp, ..., echo, encoder.")],
    triples: Annotated[Path | None, typer.Option(help="JSONL with own triples.")] = None,
    adapters: Annotated[Adapters, typer.Option(help="Trained here, or the authors'.")] = "own",
    results: Annotated[Path, typer.Option(help="Results folder.")] = RESULTS,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what is done.")] = False,
) -> None:
    """Compare the pooled beginnings of triples for one model and variant."""
    from llm2vec.analyses import measure_leakage  # here: --help need not wait for torch

    measure_leakage(
        model, variant, results, triples=triples, adapters=adapters, device=device, dtype=dtype,
        force=force,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
