"""Tables: golden texts, escaping, means that say their count, LaTeX that LaTeX takes."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import synthetic_records as made
from hypothesis import given
from hypothesis import strategies as st
from latex_check import check_latex

from analysis import (
    render,
    tables,
    tables_checks,
    tables_cost,
    tables_log,
    tables_own,
    tables_sink,
)
from analysis.build import TABLES, make_table
from analysis.collect import Results, load_results
from analysis.means import mean_of
from analysis.render import Cell, Origin, Table, bold_best, escape_tex, number
from llm2vec.registry import SUITES
from llm2vec.registry_sink import CONTROL, PLAIN
from llm2vec.results import NONE

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("results")
    made.add_everything(root)
    return load_results(root)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(tmp_path_factory.mktemp("empty"))


def tiny() -> Table:
    """Groups, blocks, bold, a sign, an empty cell and every kind of special character."""
    return Table(
        "tiny", "50 % of A_1 & B",
        ["Model", "paper", "reproduced"],
        [["A_1", Cell("10.00", True), "10.25 (+0.25) close†"],
         ["", "9.00", Cell("", True)],
         ["B|C*", "-1.00", "–"]],
        "lrl", pd.DataFrame({"model": ["A_1", "B|C*"], "score": [0.1, 1 / 3]}),
        Origin(3, ("0123456789", "abcdef0123"), "2026-01-02", 1), "2 of 3",
        groups=[("", 1), ("Word-level", 2)], breaks=frozenset({2}), notes=("50 % ± 1 & more.", "x"),
    )  # fmt: skip


def from_records(root: Path) -> Table:
    for variant, scores in (("uni", (0.90, 0.951)), ("bi-mntp", (0.91, 0.949))):
        for task, score in zip(("chunking", "ner"), scores, strict=True):
            spread = {"accuracy": {"mean": score, "std": 0.00123}, "entity_f1": {"mean": 0.5}}
            made.add(root, "word_probing", "smollm2-135m", variant, NONE, task, score,
                     scores=spread)  # fmt: skip
    return tables_own.words(load_results(root))


@pytest.mark.parametrize("name", ["tiny", "words"])
def test_golden_markdown_and_latex(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "version", lambda: "1.2.3")
    table = tiny() if name == "tiny" else from_records(tmp_path)
    golden = {suffix: (GOLDEN / f"table_{name}.{suffix}").read_text("utf-8")
              for suffix in ("md", "tex", "csv")}  # fmt: skip
    assert render.to_markdown(table) == golden["md"]
    assert render.to_tex(table) == golden["tex"]
    assert render.to_csv(table) == golden["csv"]


def test_a_table_of_uneven_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="uneven: rows of different widths"):
        Table("uneven", "", ["a", "b"], [["1"]], "ll", pd.DataFrame())


# --------------------------------------------------------------------------- LaTeX
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("which", ["full", "empty"])
def test_latex_of_every_table_is_well_formed(
    name: str, which: str, request: pytest.FixtureRequest
) -> None:
    table = make_table(name, request.getfixturevalue(which))
    text = render.to_tex(table)
    assert check_latex(text) >= len(table.rows) + 1
    assert f"% {name}: made by" in text
    assert "% tasks: " in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.slow
def test_latex_of_every_table_compiles(full: Results, tmp_path: Path) -> None:
    body = "\n".join(render.to_tex(make_table(name, full)) + r"\clearpage" for name in TABLES)
    (tmp_path / "tables.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        f"\n{body}\n" + r"\end{document}", encoding="utf-8",
    )  # fmt: skip
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    wide = [
        float(points) for points in re.findall(r"Overfull \\hbox \((.*?)pt too wide", done.stdout)
    ]
    assert all(points < 3 for points in wide), "a table is wider than the text"
    assert "Float too large" not in done.stdout, "a table is longer than a page"


def test_a_table_that_is_too_long_for_a_page_is_several_that_say_so() -> None:
    rows = [["A" if not i else "", str(i)] for i in range(render.LONG + 3)]
    table = Table("long", "Long", ["Model", "n"], rows, "lr", pd.DataFrame(), breaks={render.LONG})
    text = render.to_tex(table)
    assert check_latex(text) == len(rows) + 2
    first, second = text.split(r"\end{table}")[:2]
    assert r"\caption{Long}\label{tab:long}" in first and r"\caption{Long (continued)}" in second
    assert f"A & {render.LONG} " in second, "the model is said again"
    assert text.count(r"\label") == 1


@pytest.mark.parametrize(
    "fault",
    [
        lambda text: text.replace(r"\bottomrule", r"\bottomrul"),
        lambda text: text.replace(r" \\", "", 1),
        lambda text: text.replace(r"A\_1", "A_1"),
        lambda text: text.replace(r"\end{table}", ""),
        lambda text: text.replace(" & ", " & & ", 1),
        lambda text: text.replace(r"\textbf{10.00}", r"\textbf{10.00"),
    ],
)
def test_the_latex_check_finds_faults(fault) -> None:
    text = render.to_tex(tiny())
    check_latex(text)
    broken = fault(text)
    assert broken != text
    with pytest.raises(AssertionError):
        check_latex(broken)


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30))
def test_any_ascii_text_can_stand_in_a_cell(text: str) -> None:
    table = Table("any", text, [text], [[Cell(text, True)], ["x"]], "l", pd.DataFrame())
    check_latex(render.to_tex(table))
    assert render.to_markdown(table).splitlines()[2].startswith("| ")


def test_signed_numbers_get_a_real_minus() -> None:
    assert escape_tex("-0.25") == "$-0.25$"
    assert escape_tex("a-b") == "a-b"


# --------------------------------------------------------------------------- numbers
def test_numbers() -> None:
    assert number(None) == number(float("nan")) == ""
    assert number(-0.001) == "0.00"
    assert number(-0.001, sign=True) == "+0.00"
    assert number(1.005, digits=1, sign=True) == "+1.0"


@given(st.lists(st.none() | st.floats(0, 100), max_size=8))
def test_bold_marks_what_looks_largest(values: list[float | None]) -> None:
    shown = [number(value) for value in values]
    bold = [text for text, flag in zip(shown, bold_best(values), strict=True) if flag]
    present = [text for text in shown if text]
    if len(present) < 2:
        assert not bold
    else:
        assert set(bold) == {max(present, key=float)}
        assert len(bold) == present.count(bold[0])


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 100)), st.lists(
    st.sampled_from("abcdef"), unique=True))  # fmt: skip
def test_a_mean_is_of_all_its_tasks_or_empty(values: dict[str, float], tasks: list[str]) -> None:
    mean = mean_of(values, tasks)
    assert (mean.done, mean.total) == (len(set(tasks) & set(values)), len(tasks))
    if mean.done == mean.total > 0:
        assert mean.value == pytest.approx(sum(values[t] for t in tasks) / len(tasks))
    else:
        assert mean.value is None


# --------------------------------------------------------------------------- the tables
def shown(table: Table) -> pd.DataFrame:
    rows = [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in table.rows]
    return pd.DataFrame(rows, columns=list(table.header))


def test_smollm2_means_are_headed_by_their_count_and_empty_when_a_part_is_missing(
    tmp_path: Path,
) -> None:
    for task in SUITES["exact8"]:
        if task != "SciFact":
            made.add(tmp_path, "mteb_subset", "smollm2-135m", "uni", "mean", task, 0.4)
    table = shown(tables_own.smollm2(load_results(tmp_path)))
    assert list(table)[-2:] == ["6 of 15 tasks", "8 of 15 tasks"]
    assert list(table.iloc[0, -2:]) == ["40.00", ""]
    assert table.loc[0, "SciFact"] == "–"
    made.add(tmp_path, "mteb_subset", "smollm2-135m", "uni", "mean", "SciFact", 0.48)
    table = shown(tables_own.smollm2(load_results(tmp_path)))
    assert list(table.iloc[0, -2:]) == ["40.00", "41.00"]


def test_no_paper_column_stands_beside_a_small_model(full: Results) -> None:
    for name in ("smollm2", "subset_tasks", "subset_intervals", "words", "offline"):
        table = make_table(name, full)
        assert not any("paper" in heading.lower() for heading in table.header)
    for name in ("table1", "table2", "table4", "table5", "table11"):
        assert "SmolLM2" not in render.to_markdown(make_table(name, full))


def test_marked_data_carry_their_remark_and_enter_no_mean(tmp_path: Path) -> None:
    data = {"id": "x", "revision": "1", "source": "mirror", "status": "reconstructed"}
    axes = ("mteb_subset", "smollm2-135m")
    made.add(tmp_path, *axes, "uni", "mean", "TwentyNewsgroupsClustering", 0.3, dataset=data)
    table = shown(tables_own.subset_tasks(load_results(tmp_path)))
    assert table.loc[0, "TwentyNewsgroups (reconstructed)"] == "30.00"
    made.add(tmp_path, *axes, "bi", "mean", "TwentyNewsgroupsClustering", 0.2)
    table = shown(tables_own.subset_tasks(load_results(tmp_path)))
    assert list(table["TwentyNewsgroups"]) == ["30.00 (reconstructed)", "20.00"]
    for task in SUITES["subset"]:
        if task != "TwentyNewsgroupsClustering":
            made.add(tmp_path, *axes, "uni", "mean", task, 0.3)
    table = shown(tables_own.subset_tasks(load_results(tmp_path)))
    assert table.loc[0, "15 of 15 tasks"] == ""


def test_a_remark_on_exact_data_stands_in_the_note_and_the_mean_counts_the_task(
    tmp_path: Path,
) -> None:
    odd = {"id": "x", "revision": "1", "source": "mirror", "status": "exact, rows in another order"}
    for task in SUITES["short6"]:
        data = {"dataset": odd} if task == "STS17" else {}
        made.add(tmp_path, "mteb_subset", "smollm2-135m", "uni", "mean", task, 0.3, **data)
    for make in (tables_own.subset_tasks, tables_own.smollm2):
        table = make(load_results(tmp_path))
        assert [n for n in table.notes if "order" in n] == [
            "STS17: rows in another order; it enters the means."
        ]
        assert shown(table).loc[0, "6 of 15 tasks"].strip("*") == "30.00"
    cut = odd | {"status": "exact, half of it"}  # a mark, so it enters no mean
    made.add(tmp_path, "mteb_subset", "smollm2-135m", "uni", "mean", "STS17", 0.3, dataset=cut)
    assert not [n for n in tables_own.smollm2(load_results(tmp_path)).notes if "half" in n]


def test_intervals_stand_beside_scores(full: Results) -> None:
    table = shown(tables_own.subset_intervals(full))
    row = table[table["Task"] == "STSBenchmark"].iloc[0]
    assert row["Variant"] == "Uni"
    assert row["Mean"] == "47.00 [45.00, 49.00]"
    assert row["own"] == "–"


def test_best_is_bold_within_its_model(full: Results) -> None:
    table = tables.table5(full)
    rows = [row for row in table.rows if isinstance(row[2], Cell)]
    bold = [(row[1], row[4].text) for row in rows if row[4].bold]
    assert ("Bi + MNTP + SimCSE", "52.40") in bold
    assert len(bold) == 3  # one for each of the paper's models
    assert [row[5].text for row in rows if row[5].bold] == ["62.00 (+9.60) differs"]


def test_table1_shows_reproduced_rows_only_when_there_are_any(tmp_path: Path) -> None:
    key = ("mteb_full", "s-llama-1.3b", "uni", "weighted_mean")
    for task in SUITES["full"]:
        if task != "SummEval":
            made.add(tmp_path, *key, task, 0.35)
    table = shown(tables.table1(load_results(tmp_path)))
    start = table.index[table["Model"] == "S-LLaMA-1.3B"][0]
    numbers = table.loc[start : start + 3]
    assert list(numbers["Numbers"]) == ["paper", "reproduced", "difference", "verdict"]
    assert list(numbers["Avg."]) == ["35.05", "", "", "not run"]
    assert list(numbers["STS"])[1:] == ["35.00", "-14.15", "differs"]
    assert numbers["Tasks run"].iloc[0] == "55 of 56"
    assert list(table["Numbers"]).count("reproduced") == 1


def test_harness_judges_what_was_run(full: Results) -> None:
    table = shown(tables_checks.harness(full)).set_index("Task")
    assert table.loc["STSBenchmark", "Verdict"] == "equal"
    assert table.loc["MassiveIntentClassification", "Verdict"] == "differs"
    assert table.loc["MassiveIntentClassification", "Cause"] == ""  # no row order was scored
    assert table.loc["SciFact", "Verdict"] == "not run"


def test_alignment_puts_each_score_under_its_own_position(full: Results) -> None:
    table = tables_checks.alignment(full)
    rows = {(row[1], row[2]): row[3:5] for row in table.rows[:4]}
    assert rows["Uni", "same"] == ["90.00", "85.00"]
    assert rows["Bi + MNTP", "previous"] == ["87.00", "92.00"]


def test_departures_stand_beside_the_papers_setting(full: Results) -> None:
    table = shown(tables_checks.departures(full))
    assert len(table) == 1
    assert list(table.iloc[0, -4:]) == ["published", "41.00", "46.00", "-5.00"]


def test_the_sink_stands_beside_its_control(full: Results) -> None:
    (row,) = tables_sink.sink(full).rows
    assert row[1:7] == ["Bi", "1.25", "300.0 (2)", "310.0 (1)", "30.0", "8.0"]
    assert row[7:9] == ["30.00", "+4.00 [+3.00, +5.00]"]
    assert row[10:] == ["45.00", "-1.00 [-2.00, +0.00]", "-4.00 [-5.00, -3.00]"]
    assert "changes a score by 0.00 at most" in tables_sink.sink(full).notes[-1]
    (row,) = tables_sink.sink_triples(full).rows
    assert row[2:] == ["+0.0020", *["+0.0400 [+0.0300, +0.0500]"] * 2, "30.0", "34.0", "34.0"]
    assert "attention_sink" not in set(tables_checks.departures(full).data["experiment"])


def test_a_sink_that_was_not_measured_whole_is_marked(tmp_path: Path) -> None:
    made.add_sink(tmp_path, "smollm2-135m")
    folder = tmp_path / "raw/attention_sink/smollm2-135m/bi/mean"
    for left in (PLAIN[0], CONTROL[1]):
        (folder / f"STSBenchmark@{left.setting}.json").unlink()
    (row,) = tables_sink.sink(load_results(tmp_path)).rows
    assert row[2:8] == ["–"] * 6 and row[8] == "+4.00 [+3.00, +5.00]" and row[-1] == "–"


def test_cost_of_the_sink_is_that_of_its_passes(tmp_path: Path) -> None:
    made.add_sink(tmp_path, "smollm2-135m")
    results = load_results(tmp_path)
    data = tables_cost.cost(results).data
    assert data[["runs", "tokens", "seconds"]].to_numpy().tolist() == [[3, 1500, 40]]
    assert tables_log.runs_of(results)[["records", "seconds"]].to_numpy().tolist() == [[11, 40]]


def test_cost_counts_what_is_shared_once(tmp_path: Path) -> None:
    for pooling, seconds in (("mean", 10.0), ("weighted_mean", 10.0), ("eos", 12.0)):
        made.add(tmp_path, "mteb_subset", "smollm2-135m", "bi", pooling, "SciFact", 0.5,
                 cost={"seconds": seconds, "tokens": 100, "padding_tokens": 0})  # fmt: skip
    for task in ("ner", "pos"):
        made.add(tmp_path, "word_probing", "smollm2-135m", "bi", NONE, task, 0.5,
                 cost={"seconds": 30.0, "feature_seconds": 25.0, "tokens": 500})  # fmt: skip
    # a second corpus has features of its own
    made.add(tmp_path, "word_probing", "smollm2-135m", "bi", NONE, "ner", 0.5, setting="mini",
             dataset={"id": "mini_conll", "revision": "r", "source": "repository", "status": "x"},
             cost={"seconds": 9.0, "feature_seconds": 7.0, "tokens": 20})  # fmt: skip
    data = tables_cost.cost(load_results(tmp_path)).data.set_index("experiment")
    assert list(data.loc["mteb_subset", ["tokens", "seconds", "runs"]]) == [100, 12, 1]
    assert list(data.loc["word_probing", ["tokens", "seconds", "runs"]]) == [520, 44, 5]


def test_runs_of_other_poolings_are_work_of_their_own(tmp_path: Path) -> None:
    """Mean alone on one day, the others on another; the scoring of each pooling is its own."""
    for pooling, day, tokens, padding, seconds, sharing in (
        ("mean", 2, 50, 9, 101.0, 1), ("eos", 3, 110, 2, 82.0, 2),
        ("weighted_mean", 3, 110, 2, 83.0, 2),
    ):  # fmt: skip
        cost = {
            "seconds": seconds,
            "encoding_seconds": 100.0 if day == 2 else 80.0,
            "tokens": tokens,
            "padding_tokens": padding,
            "poolings_sharing": sharing,
        }
        made.add(tmp_path, "mteb_subset", "smollm2-135m", "bi", pooling, "SciFact", 0.5, cost=cost,
                 provenance=made.PROVENANCE | {"started": f"2026-01-0{day}T00"})  # fmt: skip
    results = load_results(tmp_path)
    data = tables_cost.cost(results).data
    measured = data[["runs", "tokens", "padding", "seconds"]].to_numpy().tolist()
    assert measured == [[2, 160, 11, 101 + 80 + 2 + 3]]
    assert tables_log.runs_of(results)["seconds"].tolist() == [101, 85]


def test_what_all_commands_took_is_what_all_experiments_cost() -> None:
    results = load_results()
    log, cost = tables_log.runs_of(results), tables_cost.cost(results).data
    assert log["seconds"].sum() == pytest.approx(cost["seconds"].sum())
    assert log["records"].sum() == len(results.records)


def test_origin_names_commits_newest_record_and_a_changed_tree(tmp_path: Path) -> None:
    provenance = made.PROVENANCE | {"commit": "f" * 40, "dirty": True, "started": "2026-03-04T00"}
    made.add(tmp_path, "word_probing", "smollm2-135m", "bi", NONE, "ner", 0.5)
    made.add(tmp_path, "word_probing", "smollm2-135m", "uni", NONE, "ner", 0.5,
             provenance=provenance)  # fmt: skip
    text = render.to_tex(tables_own.words(load_results(tmp_path)))
    assert "% records: 2, the newest of 2026-03-04" in text
    assert "% commit: 0123456789, ffffffffff (1 of the records from a changed tree)" in text
    assert "% tasks: 1 of 3" in text


def test_every_table_says_not_run_without_records(empty: Results) -> None:
    for name in TABLES:
        text = render.to_markdown(make_table(name, empty))
        if name not in ("table2", "claims_numbers", "departures", "plan"):
            assert "not run" in text.lower(), name
    assert "| none |" in render.to_markdown(make_table("departures", empty))
