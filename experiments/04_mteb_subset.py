"""The 15-task MTEB subset with its pooling ablation (paper 3.2, Table 5, Figure 3).

    python experiments/04_mteb_subset.py --model smollm2-135m --variant uni
    python experiments/04_mteb_subset.py --model mistral-7b --variant bi-mntp --adapters published

Without --pooling all three are scored from shared forward passes. ``--suite`` also takes the
embedded ``offline`` suite and parts of the subset (``exact8``, ``short6``).
"""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.console import run
from llm2vec.evaluation import execute, plan
from llm2vec.paths import results_dir


def main(
    model: Annotated[str, typer.Option(help="Name in the registry.")],
    variant: Annotated[str, typer.Option(help="uni, bi, bi-mntp, ..., echo, encoder.")],
    pooling: Annotated[str | None, typer.Option(help="One pooling; default all.")] = None,
    suite: Annotated[str, typer.Option(help="subset, exact8, short6, offline or full.")] = "subset",
    task: Annotated[str | None, typer.Option(help="One task of the suite.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    adapters: Annotated[str, typer.Option(help="own or published.")] = "own",
    dtype: Annotated[str | None, typer.Option(help="Default: the registry's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    skip_missing_data: Annotated[bool, typer.Option(help="Go on without absent data.")] = False,
) -> None:
    """Score one model and variant; records that are done are left alone."""
    planned = plan(
        model, variant, suite, results or results_dir(),
        task=task, pooling=pooling, dtype=dtype, adapters=adapters,
    )  # fmt: skip
    execute(planned, device=device, skip_missing_data=skip_missing_data)


if __name__ == "__main__":
    run(main)
