"""One HTML page of everything that is known: what ran, from where, tables, figures, claims.

    python -m analysis.report                            # build/report.html, of results/
    python -m analysis.report --results build/results    # of a quick run

The page stands alone: pictures and style are inside, nothing is fetched, and it has no scripts.
Whatever comes from a record is escaped. Equal results and an equal last run give equal bytes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from analysis import render
from analysis.build import TABLES, make_table
from analysis.collect import Results, load_results
from analysis.render import Cell, Table
from analysis.tables_log import machine_of, runs_of
from llm2vec.console import run
from llm2vec.errors import SettingError
from llm2vec.paths import build_dir, results_dir
from llm2vec.registry import EXPERIMENTS
from llm2vec.results import write_atomic

RESULTS = results_dir()
OUT = build_dir() / "report.html"
RUNS = build_dir() / "grid"  # where the engine keeps the state of its runs
APART = {"log": "ran", "claims": "claims", "claims_numbers": "claims"}  # tables' own sections
SECTIONS = {
    "ran": "What ran", "run": "Last run of the grid", "provenance": "Provenance",
    "tables": "Tables", "figures": "Figures", "claims": "Claims",
}  # fmt: skip
FIGURES = {
    "figure2": "accuracy on the word-level tasks, a bar per variant",
    "figure3": "mean over the 15-task subset, a bar per pooling and variant",
    "figure4": "cosines of triples with the same and another ending, before and after MNTP",
    "figure5": "cosine of causal and bidirectional states, layer by position",
    "figure7": "cosines of triples with the same and another ending, for every variant",
    "figure8": "cosine of causal and bidirectional states for two further paragraphs",
    "figure9": "cosine of causal and bidirectional states for the releases of Mistral-7B",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 76rem; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { border-bottom: 2px solid #1a1a1a; margin-top: 3rem; }
a { color: #0b4f9c; } nav { font-size: .9rem; } nav ul { padding: 0; }
nav li { display: inline-block; margin-right: 1.2rem; }
.wide { overflow-x: auto; margin: 1.5rem 0; } .wide:focus { outline: 2px solid #0b4f9c; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .15rem .6rem; text-align: left; vertical-align: top; }
thead tr:last-child th { border-bottom: 1px solid #1a1a1a; } tbody th { font-weight: 400;
  white-space: nowrap; }
tr.rule > * { border-top: 1px solid #999; } .r { text-align: right; }
.p { min-width: 16rem; } .group { text-align: center; border-bottom: 1px solid #999; }
.small { font-size: .85rem; color: #444; } figure { margin: 2rem 0; }
img { max-width: 100%; height: auto; } figcaption { font-size: .9rem; }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } nav { display: none; }
  .wide { overflow: visible; } table { font-size: 7pt; } thead { display: table-header-group; }
  tr, figure { break-inside: avoid; }
  tbody th, th, td { overflow-wrap: anywhere; white-space: normal; padding: .1rem .3rem; } }
"""


# --------------------------------------------------------------------------- pieces
def _row(cells: Iterable[Cell | str], columns: str, rule: bool = False) -> str:
    parts = []
    for index, (value, kind) in enumerate(zip(cells, columns, strict=True)):
        cell = value if isinstance(value, Cell) else Cell(value)
        text = escape(cell.text)
        text = f"<strong>{text}</strong>" if cell.bold and text else text
        style = f' class="{kind}"' if kind in "rp" else ""
        parts.append(f"<td{style}>{text}</td>" if index else f'<th scope="row"{style}>{text}</th>')
    return ('<tr class="rule">' if rule else "<tr>") + "".join(parts) + "</tr>"


def _groups(groups: Sequence[tuple[str, int]]) -> str:
    cells = [
        f'<th class="group" scope="colgroup" colspan="{span}">{escape(heading)}</th>'
        if heading
        else f'<td colspan="{span}"></td>'
        for heading, span in groups
    ]
    return f"<tr>{''.join(cells)}</tr>" if groups else ""


def to_html(table: Table) -> str:
    """The cells that markdown and LaTeX show, with the origin of the records below."""
    name, title = escape(table.name), escape(table.title)
    head = "".join(
        f'<th scope="col"{" class=r" if kind == "r" else ""}>{escape(text)}</th>'
        for text, kind in zip(table.header, table.columns, strict=True)
    )
    body = [
        _row(row, table.columns, bool(index) and index in table.breaks)
        for index, row in enumerate(table.rows)
    ]
    origin = [f"Origin: {'; '.join(table.origin.lines())}."] if table.origin.records else []
    notes = "".join(f'<p class="small">{escape(note)}</p>\n' for note in (*table.notes, *origin))
    return (
        f'<div class="wide" id="table-{name}" role="region" aria-label="{title}" tabindex="0">\n'
        f"<table>\n<caption>{title}</caption>\n"
        f"<thead>{_groups(table.groups)}<tr>{head}</tr></thead>\n"
        "<tbody>\n" + "\n".join(body) + f"\n</tbody>\n</table>\n</div>\n{notes}"
    )


def _plain(name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of the page alone; a column of numbers is set to the right."""
    columns = "".join(
        "r" if rows and all(isinstance(row[i], int | float) for row in rows) else "l"
        for i in range(len(header))
    )
    shown = [[str(value) for value in row] for row in rows]
    return to_html(Table(name, title, header, shown, columns, pd.DataFrame()))


# --------------------------------------------------------------------------- sections
def _ran(results: Results) -> str:
    rows = []
    seconds = runs_of(results).groupby("experiment")["seconds"].sum()
    for name, frame in results.scores.groupby("experiment", sort=False):
        days = frame["started"].dropna().str[:10]
        rows.append(
            [str(name), len(frame), frame["model"].nunique(), frame["variant"].nunique(),
             days.min(), days.max(), f"{seconds[name] / 3600:.1f} h"]
        )  # fmt: skip
    rows.sort(key=lambda row: list(EXPERIMENTS).index(row[0]))
    header = ["Experiment", "Records", "Models", "Variants", "First", "Last", "Duration"]
    return _plain("experiments", "Records by experiment", header, rows)


def _counted(title: str, name: str, header: Sequence[str], values: Iterable[Sequence[Any]]) -> str:
    """How many records have each value."""
    counts = pd.Series([tuple(map(str, value)) for value in values], dtype=object).value_counts()
    rows = sorted([*value, int(number)] for value, number in counts.items())
    return _plain(name, title, [*header, "Records"], rows)


def _provenance(results: Results) -> str:
    records = results.records
    sources = [record.provenance for record in records]
    versions = [(n, v) for s in sources for n, v in s.get("versions", {}).items()]
    commits = [(s["commit"][:10], "changed" if s["dirty"] else "clean") for s in sources]
    machines = [
        (machine_of(s), s["dtype"], s.get("attention_implementation", ""), s.get("python", ""))
        for s in sources
    ]
    data = [tuple(r.dataset[k] for k in ("id", "revision", "source", "status")) for r in records]
    models = [(r.model, r.model_revision) for r in records]
    return "".join(
        [
            _counted("Commits", "commits", ["Commit", "Tree"], commits),
            _counted("Machines", "machines", ["Machine", "Dtype", "Attention", "Python"], machines),
            _counted("Versions", "versions", ["Package", "Version"], versions),
            _counted("Models", "models", ["Model", "Revision"], models),
            _counted("Datasets", "datasets", ["Dataset", "Revision", "Source", "Status"], data),
        ]
    )


def _json(file: Path) -> Mapping[str, Any]:
    """An object of JSON; an empty one where the file is missing, or being written."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _last_run(runs: Path) -> str:
    folders = sorted(folder for folder in runs.glob("run-*") if folder.is_dir())
    if not folders:
        return "<p>No run of the grid has left its state here.</p>\n"
    rows = []
    for job in _json(folders[-1] / "plan.json").get("jobs", []):
        state = _json(folders[-1] / "state" / f"{Path(job['name']).name}.json")
        seconds = state.get("ended", 0) - state.get("began", 0) if "ended" in state else None
        rows.append(
            [job["name"], state.get("status", "not started"), len(job["products"]),
             state.get("attempt", 0), "" if seconds is None else f"{seconds:.0f} s",
             state.get("host", ""), state.get("why", "")]
        )  # fmt: skip
    header = ["Job", "Status", "Products asked for", "Attempts", "Duration", "Machine", "Why"]
    title = f"{folders[-1].name}: {sum(row[1] == 'done' for row in rows)} of {len(rows)} jobs done"
    return _plain("last-run", title, header, rows)


def _figures(folder: Path) -> str:
    parts = []
    for file in sorted(folder.glob("figure*.png")):
        number = file.stem.removesuffix("_paper")
        source = "numbers that the paper prints" if number != file.stem else "measured here"
        label = f"Figure {number.removeprefix('figure')}: {FIGURES.get(number, '')} ({source})"
        picture = base64.b64encode(file.read_bytes()).decode()
        parts.append(
            f'<figure id="{escape(file.stem)}"><img alt="{escape(label)}" '
            f'src="data:image/png;base64,{picture}"><figcaption>{escape(label)}. '
            "The data behind it are in the tables.</figcaption></figure>\n"
        )
    return "".join(parts) or "<p>No pictures were drawn: <code>make figures</code>.</p>\n"


def _contents(tables: Iterable[Table]) -> str:
    """Links to tables, for a page of many."""
    links = "".join(
        f'<li><a href="#table-{escape(t.name)}">{escape(t.title)}</a></li>' for t in tables
    )
    return f'<nav aria-label="Tables"><ul>{links}</ul></nav>\n'


def page(results: Results, runs: Path = RUNS) -> str:
    """The whole page; ``runs``: folder with the states of the engine's runs."""
    tables = {name: make_table(name, results) for name in TABLES}
    made = {name: to_html(table) for name, table in tables.items()}
    bodies = {
        "ran": _ran(results),
        "run": _last_run(runs),
        "provenance": _provenance(results),
        "tables": _contents(table for name, table in tables.items() if name not in APART)
        + "".join(text for name, text in made.items() if name not in APART),
        "figures": _figures(results.root / "figures"),
        "claims": "",
    }
    for name, section in APART.items():
        bodies[section] += made[name]
    newest = render.Origin.of(results.scores).newest or "unknown date"
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in SECTIONS.items())
    sections = "".join(
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{text}</h2>\n'
        f"{bodies[name]}</section>\n"
        for name, text in SECTIONS.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>LLM2Vec, reproduced: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        "<header><h1>LLM2Vec, reproduced</h1>\n"
        f"<p>Version {escape(render.version())}, {len(results.records)} records, the newest of "
        f"{escape(newest)}.</p>\n<nav aria-label=\"Sections\"><ul>{links}</ul></nav></header>\n"
        f"<main>\n{sections}</main>\n</body>\n</html>\n"
    )  # fmt: skip


def main(
    results: Annotated[Path, typer.Option(help="Results folder.")] = RESULTS,
    out: Annotated[Path, typer.Option(help="File to write.")] = OUT,
    runs: Annotated[Path, typer.Option(help="Folder of the engine's runs.")] = RUNS,
) -> None:
    """Write the page."""
    if not results.is_dir():
        raise SettingError(f"{results} is no folder. Give the folder that experiments write to.")
    loaded = load_results(results)
    try:
        write_atomic(out, page(loaded, runs))
    except OSError as error:
        raise SettingError(
            f"cannot write {out}: {error.strerror}. Choose another --out."
        ) from error
    typer.echo(f"{len(loaded.records)} records: {out}")


if __name__ == "__main__":
    run(main)
