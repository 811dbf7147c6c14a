"""The whole grid by one engine: what is missing is trained and measured, the rest left alone.

    python experiments/grid.py all --model smollm2-135m --dry-run    # what would run, at what cost
    python experiments/grid.py mteb --suite short6 --variant uni
    python experiments/grid.py all --model all --profile slurm --jobs 20

Goals: offline, words, mteb (``--suite``, default subset), analyses, all. Killed, it goes on.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llm2vec.console import run
from llm2vec.paths import results_dir

RESULTS = results_dir()
TABLES = {
    "offline": "offline", "mteb": "subset_tasks", "full": "table11", "words": "words",
    "analyses": "leakage", "all": "verdicts",
}  # fmt: skip


def report(results: Path, goal: str) -> None:
    """Regenerate the tables of a results folder, print the goal's, and say where everything is."""
    from analysis.build import make_table, write_generated
    from analysis.collect import load_results
    from analysis.render import to_terminal

    loaded = load_results(results)
    try:
        write_generated(loaded)
    except OSError as error:
        print(f"The tables could not be written: {error}", file=sys.stderr)
    print("\n" + to_terminal(make_table(TABLES[goal], loaded)))
    print(f"Records, one JSON file a number: {results / 'raw'}")
    print(f"All tables (csv, md, tex):       {results / 'tables'}")
    print(f"All scores in one file:          {results / 'scores.csv'}")


def main(
    goal: Annotated[str, typer.Argument(help="offline, words, mteb, analyses or all.")],
    model: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "smollm2-135m",
    variant: Annotated[str | None, typer.Option(help="One variant; default the paper's.")] = None,
    pooling: Annotated[str | None, typer.Option(help="One pooling; default the paper's.")] = None,
    suite: Annotated[str | None, typer.Option(help="Suite of the goal mteb.")] = None,
    adapters: Annotated[str, typer.Option(help="own or published.")] = "own",
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = RESULTS,
    train: Annotated[bool, typer.Option(help="Train adapters that are not at hand.")] = True,
    profile: Annotated[str, typer.Option(help="local, gpu, slurm, or a folder.")] = "local",
    jobs: Annotated[int, typer.Option(help="Jobs at a time.")] = 1,
    hours: Annotated[float | None, typer.Option(help="Longest walltime; default 24.")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs for a large model's suite.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run.")] = False,
    scratch: Annotated[Path | None, typer.Option(help="Folder of the engine's state.")] = None,
) -> None:
    """Make the records that are missing; `make reproduce` and its relatives are this."""
    from llm2vec import costs, engine, grid, provenance
    from llm2vec.progress import plan_table

    chosen = grid.Selection(
        parts=grid.parts_of(goal, suite), models=tuple(model.split(",")), variant=variant,
        pooling=pooling, adapters=adapters, results=results.absolute(), train=train, gpus=gpus,
    )  # fmt: skip
    longest = costs.longest_of(engine.find_profile(profile), hours)
    todo = grid.expand(chosen, profile != "local", longest)
    if dry_run:
        print(plan_table(todo))
        return
    provenance.git_state()  # what is wrong with it is said here, not in each job's log
    fine = not todo or engine.run(todo, profile, jobs, scratch)
    report(results, suite if suite in TABLES else goal)
    if not fine:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
