"""All 56 tasks of MTEB(eng, v1) (paper Tables 1 and 11); the paper scores one pooling each.

    python experiments/05_mteb_full.py --model mistral-7b --variant bi-mntp-simcse \
        --pooling mean --adapters published
"""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.console import run
from llm2vec.evaluation import execute, plan
from llm2vec.paths import results_dir
from llm2vec.registry_grid import full_pooling


def main(
    model: Annotated[str, typer.Option(help="Name in the registry.")],
    variant: Annotated[str, typer.Option(help="uni, bi, bi-mntp, ..., echo, encoder.")],
    pooling: Annotated[
        str | None, typer.Option(help="Default: the paper's for the variant.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="One of the 56 tasks.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    adapters: Annotated[str, typer.Option(help="own or published.")] = "own",
    dtype: Annotated[str | None, typer.Option(help="Default: the registry's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    skip_missing_data: Annotated[bool, typer.Option(help="Go on without absent data.")] = False,
) -> None:
    """Score one model and variant on the full benchmark; done records are left alone."""
    if pooling is None and variant != "encoder":
        pooling = full_pooling(variant)
    planned = plan(
        model, variant, "full", results or results_dir(),
        task=task, pooling=pooling, dtype=dtype, adapters=adapters,
    )  # fmt: skip
    execute(planned, device=device, skip_missing_data=skip_missing_data)


if __name__ == "__main__":
    run(main)
