"""Everything that is generated from results, made or checked in one go.

    python -m analysis.build                      # scores.csv, tables, figure data, README blocks
    python -m analysis.build --check              # exit 1, naming the files that would change
    python -m analysis.build --figures            # the pictures as well
    python -m analysis.build --results build/results --show offline

Equal records give equal bytes on any machine. Pictures may differ by a byte between machines, so
they are drawn only on request, and the check compares the data they draw (``figures/*.csv``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from analysis import (
    render,
    tables,
    tables_ablations,
    tables_adapters,
    tables_checks,
    tables_claims,
    tables_cost,
    tables_dtypes,
    tables_log,
    tables_own,
    tables_performance,
    tables_plan,
    tables_sink,
    tables_verdicts,
)
from analysis.collect import Results, load_results, to_csv
from analysis.figure_data import DATA, DRAWN
from analysis.readme import fill_page
from analysis.render import Table
from llm2vec.console import run
from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.paths import ROOT, results_dir
from llm2vec.results import write_atomic

TABLES: Mapping[str, Callable[[Results], Table]] = {
    "table1": tables.table1,
    "table2": tables.table2,
    "table4": tables.table4,
    "table5": tables.table5,
    "table6": tables.table6,
    "table11": tables.table11,
    "verdicts": tables_verdicts.verdicts,
    "bands": tables_verdicts.bands,
    "smollm2": tables_own.smollm2,
    "offline": tables_own.offline,
    "offline_intervals": tables_own.offline_intervals,
    "subset_tasks": tables_own.subset_tasks,
    "subset_intervals": tables_own.subset_intervals,
    "echo": tables_own.echo,
    "words": tables_own.words,
    "words_mini": tables_own.words_mini,
    "alignment": tables_checks.alignment,
    "harness": tables_checks.harness,
    "row_order": tables_checks.row_order,
    "leakage": tables_checks.leakage,
    "layers": tables_checks.layers,
    "sink": tables_sink.sink,
    "sink_triples": tables_sink.sink_triples,
    "sensitivity": tables_ablations.sensitivity,
    "ablations": tables_ablations.ablations,
    "training": tables_adapters.training,
    "departures": tables_checks.departures,
    "not_run": tables_plan.not_run,
    "dtypes": tables_dtypes.dtypes,
    "cost": tables_cost.cost,
    "plan": tables_plan.plan,
    "log": tables_log.log,
    "performance_encode": tables_performance.encoding,
    "performance_breakdown": tables_performance.breakdown,
    "performance_choices": tables_performance.choices,
    "performance_training": tables_performance.training,
    "performance_words": tables_performance.words,
    "performance_scale": tables_performance.scale,
    "performance_startup": tables_performance.startup,
    "performance_grid": tables_performance.grid,
    "performance_gpu": tables_performance.gpu,
    "performance_retrieval": tables_performance.retrieval,
    "claims": tables_claims.claims_table,
    "claims_numbers": tables_claims.claims_numbers,
}
_TABLE_FILES = ("*.csv", "*.md", "*.tex")
DIGEST = "Data"  # in a picture's metadata: of what it draws
RESULTS = results_dir()


def make_table(name: str, results: Results) -> Table:
    """A table by its name; :class:`UnknownNameError` lists the valid ones."""
    if name not in TABLES:
        raise UnknownNameError("table", name, TABLES)
    return TABLES[name](results)


def generate(results: Results, pages: bool = True) -> dict[Path, str]:
    """Text of every generated file by its path; ``pages``: README files with their blocks, too."""
    made = {name: make_table(name, results) for name in TABLES}
    root = results.root
    files = {root / "scores.csv": to_csv(results.scores)}
    for name, table in made.items():
        files[root / "tables" / f"{name}.csv"] = render.to_csv(table)
        files[root / "tables" / f"{name}.md"] = render.to_markdown(table)
        files[root / "tables" / f"{name}.tex"] = render.to_tex(table)
    files |= figure_tables(results)
    if pages:

        def block(name: str) -> str:
            if name not in made:
                raise UnknownNameError("table", name, made)
            return render.to_markdown(made[name])

        # The repository's own pages show the committed results, never those of a quick run.
        committed = root.resolve() == results_dir().resolve()
        own = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if committed else []
        for path in (*own, root / "README.md"):
            text = fill_page(path, block)
            if text is not None:
                files[path] = text
    return files


def figure_tables(results: Results) -> dict[Path, str]:
    """The data that figures draw, for every figure that has any."""
    files = {}
    for name, make in DATA.items():
        frame = make(results)
        if len(frame):
            text = frame.to_csv(index=False, lineterminator="\n")
            files[results.root / "figures" / f"{name}.csv"] = text
    return files


def stale_files(results: Results, files: Mapping[Path, str]) -> list[Path]:
    """Generated files of an earlier build that no table or figure makes any more."""
    found = [p for pattern in _TABLE_FILES for p in (results.root / "tables").glob(pattern)]
    found += (results.root / "figures").glob("*.csv")
    return sorted(set(found) - set(files))


def differences(results: Results, files: Mapping[Path, str]) -> list[Path]:
    """Files whose content on disk is not what would be generated now."""
    changed = [path for path, text in files.items() if _read(path) != text]
    return sorted([*changed, *stale_files(results, files)])


def data_digest(name: str, results: Results, files: Mapping[Path, str]) -> str:
    """sha256 of the data that a figure draws."""
    paths = (results.root / "figures" / f"{part}.csv" for part in DRAWN[name])
    return hashlib.sha256("\0".join(files.get(path, "") for path in paths).encode()).hexdigest()


def old_pictures(results: Results, files: Mapping[Path, str]) -> list[Path]:
    """Pictures of other data than today's, or that nothing draws."""
    return [
        path
        for path in sorted((results.root / "figures").glob("*.png"))
        if path.stem not in DRAWN
        # as PNG has it in a chunk of text: key, zero, value
        or f"{DIGEST}\0{data_digest(path.stem, results, files)}".encode() not in path.read_bytes()
    ]


def write_generated(results: Results, files: Mapping[Path, str] | None = None) -> None:
    """Write every generated file that differs, and delete those that nothing makes any more."""
    files = generate(results) if files is None else files
    for path in differences(results, files):
        if path in files:
            write_atomic(path, files[path])
        else:
            path.unlink()


def _read(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open(path, encoding="utf-8", newline="") as handle:  # line ends as they are
        return handle.read()


def draw_figures(results: Results) -> list[Path]:
    """Draw every figure that has data as PDF and PNG into ``figures/``; returns the files.

    A picture says by the digest of its data of which records it was made.
    """
    import matplotlib.pyplot as plt

    from analysis.figures import FIGURES
    from analysis.style import paper_style

    folder = results.root / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    files = figure_tables(results)
    written = []
    for name, draw in FIGURES.items():
        figure = draw(results)
        if figure is None:
            continue
        with paper_style():
            # No dates and versions: the same data gives the same file.
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
            digest = data_digest(name, results, files)
            figure.savefig(folder / f"{name}.png", metadata={"Software": None, DIGEST: digest})
        plt.close(figure)
        written += [folder / f"{name}.pdf", folder / f"{name}.png"]
    return written


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main(
    results: Annotated[Path, typer.Option(help="Results folder.")] = RESULTS,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail on drift.")] = False,
    figures: Annotated[bool, typer.Option("--figures", help="Draw the figures, too.")] = False,
    show: Annotated[str | None, typer.Option(help="Print one table, write nothing.")] = None,
) -> None:
    """Regenerate scores.csv, tables, figure data and README blocks from records."""
    if not results.is_dir():
        raise SettingError(f"{results} is no folder. Give the folder that experiments write to.")
    loaded = load_results(results)
    if show is not None:
        typer.echo(render.to_markdown(make_table(show, loaded)), nl=False)
        return
    files = generate(loaded)
    changed = differences(loaded, files)
    if check:
        pictures = old_pictures(loaded, files)
        for path in (*changed, *pictures):
            typer.echo(f"out of date: {_shown(path)}", err=True)
        if changed or pictures:
            how = "make figures" if pictures else "make tables"
            typer.echo(f"Run '{how}' and commit what changes.", err=True)
            raise typer.Exit(1)
        typer.echo(f"{len(files)} generated files are up to date.")
        return
    write_generated(loaded, files)
    drawn = draw_figures(loaded) if figures else []
    typer.echo(
        f"{len(loaded.records)} records: {len(changed)} of {len(files)} files changed"
        + (f", {len(drawn)} pictures drawn" if figures else "")
        + f" in {_shown(loaded.root.resolve())}."
    )


if __name__ == "__main__":
    run(main)
