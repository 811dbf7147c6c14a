"""The main job in one command: a suite for every variant at hand, then a table of what came out.

    make reproduce                                          # offline suite, into build/results
    make reproduce-mteb SUITE=subset MODEL=smollm2-135m     # the paper's 15 tasks, into results/

Without ``--variant``: every variant of the model whose adapter is at hand, and the encoder
baseline. What is done is not measured again. The offline suite is no MTEB: its numbers compare
variants with each other, nothing else.
"""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.console import run
from llm2vec.registry import VARIANTS, get_model, get_suite, variants_of

BASELINE = "minilm-l6"


def pairs_to_run(model: str, variant: str | None) -> list[tuple[str, str]]:
    """(model, variant) pairs: the one asked for, or all that can run without training."""
    if variant:
        return [(model, variant)]
    from llm2vec.loading import has_adapters

    spec = get_model(model)
    ready = [v for v in variants_of(spec) if has_adapters(spec, VARIANTS[v]) and v != "echo"]
    baseline = [(BASELINE, "encoder")] if model != BASELINE else []
    return baseline + [(model, name) for name in ready]


def report(results: Path, table: str) -> None:
    """Regenerate the tables of a results folder, print one, and say where everything lies."""
    from analysis.build import make_table, write_generated
    from analysis.collect import load_results
    from analysis.render import to_terminal

    loaded = load_results(results)
    write_generated(loaded)
    print("\n" + to_terminal(make_table(table, loaded)))
    print(f"Records, one JSON file a number: {results / 'raw'}")
    print(f"All tables (csv, md, tex):       {results / 'tables'}")
    print(f"All scores in one file:          {results / 'scores.csv'}")


def main(
    results: Annotated[Path, typer.Option(help="Folder of the records.")],
    model: Annotated[str, typer.Option(help="Name in the registry.")] = "smollm2-135m",
    variant: Annotated[str | None, typer.Option(help="One variant; default all at hand.")] = None,
    pooling: Annotated[str | None, typer.Option(help="One of eos, mean, weighted_mean.")] = None,
    suite: Annotated[str, typer.Option(help="offline, subset, short6, exact8, full.")] = "offline",
    adapters: Annotated[str, typer.Option(help="own or published.")] = "own",
) -> None:
    """Measure what is missing and print the table."""
    get_suite(suite)
    chosen = pairs_to_run(model, variant)
    from llm2vec.evaluation import execute, plan

    runs = [
        plan(m, v, suite, results, pooling=None if v == "encoder" else pooling, adapters=adapters)
        for m, v in chosen
    ]
    for planned in runs:
        execute(planned, skip_missing_data=suite != "offline")
    report(results, "offline" if suite == "offline" else "subset_tasks")


if __name__ == "__main__":
    run(main)
