"""Ablations and sensitivity: learning rate, steps, masking, dropout, padding (paper D.1).

    python experiments/08_ablations.py --group mntp-lr --dry-run
    python experiments/08_ablations.py --group mntp-lr
    python experiments/08_ablations.py --group simcse-padding --setting simcse-padding-true-43

Small runs on one model, listed in ``llm2vec/registry_ablations.py``; each writes
``raw/ablations/{model}/{variant}/{pooling}/{task}@{setting}.json``. Killed, the same command goes
on; what is done is left alone. Groups: mntp-lr, simcse-lr, simcse-after-mntp-lr, mntp-masking,
simcse-dropout, simcse-padding.
"""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.console import run
from llm2vec.paths import results_dir
from llm2vec.registry_ablations import get_ablations


def main(
    group: Annotated[str, typer.Option(help="mntp-lr, simcse-lr, mntp-masking, ...")],
    setting: Annotated[str | None, typer.Option(help="One run of the group; default all.")] = None,
    model: Annotated[str, typer.Option(help="A decoder of the registry.")] = "smollm2-135m",
    results: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List runs and their cost.")] = False,
) -> None:
    """Train and measure what a group of ablations still lacks."""
    chosen = get_ablations(group, setting)
    from llm2vec import ablations  # after the names are checked: torch loads slowly

    folder = results or results_dir()
    runs = ablations.plan(model, chosen, device)
    for line in ablations.overview(runs, folder):
        typer.echo(line)
    if not dry_run:
        typer.echo(f"{ablations.execute(runs, folder)} records written")


if __name__ == "__main__":
    run(main)
