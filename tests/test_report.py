"""The report: everything is in it, nothing of it runs, and equal results give equal bytes."""

import base64
import json
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import synthetic_records as made
from typer.testing import CliRunner

from analysis import report
from analysis.build import TABLES, make_table
from analysis.collect import Results, load_results
from analysis.render import Cell, Table
from llm2vec.errors import SettingError

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
PNG = b"\x89PNG\r\n\x1a\n not a real picture"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags with their attributes; every tag that is opened must be closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("results")
    made.add_everything(root)
    (root / "figures").mkdir()
    for name in ("figure2", "figure2_paper", "figure4"):
        (root / "figures" / f"{name}.png").write_bytes(PNG + name.encode())
    return load_results(root)


@pytest.fixture(scope="module")
def text(full: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.page(full, tmp_path_factory.mktemp("runs"))


def add_run(runs: Path, name: str, **states: dict[str, object]) -> None:
    """The state that a run of the grid leaves; a job without values has none."""
    (runs / name / "state").mkdir(parents=True)
    jobs = [{"name": job, "products": ["a.json", "b.json"]} for job in states]
    (runs / name / "plan.json").write_text(json.dumps({"jobs": jobs}))
    for job, values in states.items():
        if values:
            (runs / name / "state" / f"{job}.json").write_text(json.dumps(values))


# --------------------------------------------------------------------------- what is in it
def test_every_section_table_cell_and_figure_is_there(full: Results, text: str) -> None:
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"table-{name}" for name in TABLES} <= set(ids)
    links = {attributes["href"] for attributes in page.all("a")}
    tables = {f"table-{name}" for name in TABLES if name not in report.APART}
    assert links == {f"#{name}" for name in {*report.SECTIONS, *tables}}
    assert links <= {f"#{name}" for name in ids}
    shown = "".join(page.text)
    for name in TABLES:
        table = make_table(name, full)
        cells = [c.text if isinstance(c, Cell) else c for row in table.rows for c in row]
        for wanted in (table.title, *table.header, *cells, *table.notes):
            assert wanted in shown, (name, wanted)
    pictures = [base64.b64decode(image["src"].partition(",")[2]) for image in page.all("img")]
    assert pictures == [PNG + n for n in (b"figure2", b"figure2_paper", b"figure4")]
    assert all(image["alt"] and len(image["alt"]) > 30 for image in page.all("img"))


def test_the_best_are_bold_numbers_stand_right_and_groups_span_columns() -> None:
    rows = [["a", Cell("2.00", bold=True)], ["b", "1.00"]]
    table = Table(
        "t", "T", ["name", "score"], rows, "lr", pd.DataFrame(),
        groups=[("", 1), ("G", 1)], breaks=frozenset({0, 1}),
    )  # fmt: skip
    html = report.to_html(table)
    assert '<tr><th scope="row">a</th><td class="r"><strong>2.00</strong></td></tr>' in html
    assert '<tr class="rule"><th scope="row">b</th><td class="r">1.00</td></tr>' in html
    assert '<th class="group" scope="colgroup" colspan="1">G</th>' in html


def test_provenance_counts_the_records(full: Results, text: str) -> None:
    number = len(full.records)
    assert f"{number} records, the newest of 2026-01-02" in text
    assert f'<th scope="row">0123456789</th><td>clean</td><td class="r">{number}</td>' in text


def test_the_last_run_is_summed_up(full: Results, tmp_path: Path) -> None:
    add_run(tmp_path, "run-20260101-000000-1", old={"status": "done"})
    add_run(
        tmp_path, "run-20260102-000000-1",
        fine={"status": "done", "began": 5.0, "ended": 65.4, "host": "node7", "attempt": 2},
        bad={"status": "failed", "why": "exit code 1", "began": 1.0, "ended": 2.0}, never={},
    )  # fmt: skip
    (tmp_path / "run-20260102-000000-1" / "state" / "bad.json").read_text()
    html = report._last_run(tmp_path)
    assert "run-20260102-000000-1: 1 of 3 jobs done" in html and "old" not in html
    for wanted in ("60 s", "node7", "exit code 1", "not started"):
        assert f">{wanted}</td>" in html
    assert html in report.page(full, tmp_path)


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"jobs": []}'])
def test_a_damaged_run_is_no_error(tmp_path: Path, damage: str) -> None:
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "plan.json").write_text(damage)
    assert "run-1: 0 of 0 jobs done" in report._last_run(tmp_path)


def test_no_results_no_figures_and_no_run_are_no_error(tmp_path: Path) -> None:
    html = report.page(load_results(tmp_path), tmp_path / "nowhere")
    Page(html)
    assert "0 records" in html and "No pictures were drawn" in html
    assert "No run of the grid" in html


# --------------------------------------------------------------------------- safe and stable
def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    source = made.PROVENANCE | {
        "command": HOSTILE, "commit": HOSTILE, "platform": HOSTILE, "versions": {HOSTILE: HOSTILE}
    }  # fmt: skip
    data = {"id": HOSTILE, "revision": HOSTILE, "source": HOSTILE, "status": HOSTILE}
    made.add(
        tmp_path, "mteb_subset", "smollm2-135m", "uni", "mean", "STS17", 0.5,
        provenance=source, dataset=data, model_revision=HOSTILE, metric=HOSTILE,
    )  # fmt: skip
    add_run(tmp_path / "runs", f"run-{HOSTILE.replace('/', '')}", x={"why": HOSTILE})
    html = report.page(load_results(tmp_path), tmp_path / "runs")
    page = Page(html)
    assert page.all("script") == [] and page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "".join(page.text).count(HOSTILE) > 5
    assert unescape(html).count("<script>") == html.count("&lt;script&gt;") > 5


def test_nothing_is_fetched(text: str) -> None:
    page = Page(text)
    addresses = [a.get("src") or a.get("href") or "" for _, a in page.tags]
    assert all(address.startswith(("data:", "#")) for address in addresses if address)
    assert page.all("link") == [] and "url(" not in text and "@import" not in text


def test_equal_results_give_equal_bytes(full: Results, text: str, tmp_path: Path) -> None:
    assert report.page(load_results(full.root), tmp_path) == text


# --------------------------------------------------------------------------- command line
def call(*arguments: str) -> tuple[int, str]:
    app = report.typer.Typer()
    app.command()(report.main)
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return done.exit_code, done.output


def test_the_command_writes_the_page_and_explains_mistakes(tmp_path: Path) -> None:
    made.add(tmp_path, "mteb_subset", "smollm2-135m", "uni", "mean", "STS17", 0.5)
    out = tmp_path / "new" / "page.html"
    options = ("--results", str(tmp_path), "--runs", str(tmp_path / "runs"))
    code, said = call(*options, "--out", str(out))
    assert code == 0 and "1 records" in said
    assert out.read_text() == report.page(load_results(tmp_path), tmp_path / "runs")
    with pytest.raises(SettingError, match="no folder"):
        call("--results", str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match="cannot write"):
        call(*options, "--out", str(out / "below-a-file.html"))
