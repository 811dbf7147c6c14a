"""Collecting and building: every record, the same bytes, errors that name the record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import synthetic_records as made
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from analysis import build
from analysis.collect import COLUMNS, Results, collect, load_results, to_csv
from analysis.readme import fill
from llm2vec.errors import RecordError, SettingError, UnknownNameError
from llm2vec.paths import ROOT
from llm2vec.results import NONE


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("results")
    made.add_everything(root)
    return load_results(root)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files; no test here is about a crash."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def run_build(*arguments: str) -> tuple[int, str]:
    app = build.typer.Typer()
    app.command()(build.main)
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return done.exit_code, done.output


# --------------------------------------------------------------------------- collecting
def test_every_record_is_one_row_with_its_values(tmp_path: Path) -> None:
    made.add(
        tmp_path, "word_probing", "smollm2-135m", "bi-mntp", NONE, "ner", 0.93,
        interval=(0.92, 0.94), seeds=(42, 43), adapters=("aa", "bb"), setting="same",
        scores={"accuracy": {"std": 0.01}, "entity_f1": {"mean": 0.7}},
    )  # fmt: skip
    made.add(tmp_path, "mteb_subset", "minilm-l6", "encoder", NONE, "SciFact", 0.1)
    frame = collect(tmp_path)
    assert list(frame["task"]) == ["SciFact", "ner"]
    row = frame.iloc[1]
    expected = {
        "score": 0.93, "low": 0.92, "high": 0.94, "std": 0.01, "entity_f1": 0.7, "seeds": 2,
        "adapters": "aa bb", "setting": "same", "dataset_status": "exact", "tokens": 1000,
        "commit": made.PROVENANCE["commit"],
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert frame.iloc[0][["setting", "low", "std", "adapters"]].isna().all()


def test_scores_csv_depends_on_the_records_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    tasks = ["STS17", "SciFact", "SICK-R"]
    for root, order in ((first, tasks), (second, tasks[::-1])):
        for task in order:
            made.add(root, "mteb_subset", "smollm2-135m", "bi", "mean", task, 1 / 3)
    text = to_csv(collect(first))
    assert text == to_csv(collect(second))
    assert "0.3333333333333333" in text
    assert "\r" not in text


def test_no_records_make_an_empty_table_with_all_columns(tmp_path: Path) -> None:
    frame = collect(tmp_path / "nowhere")
    assert list(frame) == list(COLUMNS)
    assert frame.empty


def damage(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))


@pytest.mark.parametrize(
    ("break_it", "field"),
    [
        (lambda path: path.write_text("{"), "not a readable record"),
        (lambda path: damage(path, score=7), "'score'"),
        (lambda path: damage(path, cost={"seconds": "long"}), "'seconds' is 'long'"),
        (lambda path: damage(path, scores={"accuracy": {"std": "wide"}}), "'std' is 'wide'"),
    ],
)
def test_a_broken_record_stops_the_build_with_its_name(tmp_path: Path, break_it, field) -> None:
    made.add(tmp_path, "word_probing", "smollm2-135m", "uni", NONE, "pos", 0.9)
    path = made.add(tmp_path, "word_probing", "smollm2-135m", "bi", NONE, "ner", 0.9)
    break_it(path)
    with pytest.raises(RecordError) as caught:
        build.generate(load_results(tmp_path))
    assert str(path) in str(caught.value)
    assert field in str(caught.value)
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize(
    ("axes", "axis", "hint"),
    [
        (("mteb_subset", "smollm-135m", "uni", "mean", "SciFact"), "model", "smollm2-135m"),
        (("mteb_subset", "smollm2-135m", "unii", "mean", "SciFact"), "variant", "uni"),
        (("mteb_subset", "smollm2-135m", "uni", "max", "SciFact"), "pooling", "mean"),
        (("offline_suite", "smollm2-135m", "uni", "mean", "Scifact"), "task", "SciFact"),
        (("mteb_sub", "smollm2-135m", "uni", "mean", "SciFact"), "experiment", "mteb_subset"),
    ],
)
def test_axes_unknown_to_the_registry_are_named(tmp_path: Path, axes, axis, hint) -> None:
    path = made.add(tmp_path, *axes, 0.5)
    with pytest.raises(RecordError) as caught:
        collect(tmp_path)
    for part in (str(path), f"'{axis}'", hint):
        assert part in str(caught.value)


# --------------------------------------------------------------------------- building
def test_generating_twice_gives_identical_bytes(full: Results, tmp_path: Path) -> None:
    first = build.generate(full)
    again = build.generate(load_results(full.root))
    assert first == again
    names = {path.relative_to(full.root).as_posix() for path in first}
    assert {"scores.csv", "tables/table4.tex", "tables/claims.md", "figures/figure2.csv"} <= names
    empty = {name for name, make in build.DATA.items() if make(full).empty}
    assert empty == {"follow_ups_ablations"}
    assert len(names) == 1 + 3 * len(build.TABLES) + len(build.DATA) - len(empty)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_no_byte_depends_on_the_order_of_a_set(seed: str) -> None:
    """Strings hash anew in every process, so a sum over a set rounds anew."""
    done = subprocess.run(
        [sys.executable, "-m", "analysis.build", "--check"], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | {"PYTHONHASHSEED": seed},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_check_names_what_changed_and_changes_nothing(tmp_path: Path) -> None:
    made.add_words(tmp_path, "smollm2-135m")
    page = "# Words\n\n<!-- table:words -->\nold\n<!-- /table -->\n\nEnd.\n"
    (tmp_path / "README.md").write_text(page)
    where = ("--results", str(tmp_path))
    code, output = run_build(*where, "--check")
    assert code == 1
    assert "README.md" in output
    assert not (tmp_path / "scores.csv").exists()
    assert (tmp_path / "README.md").read_text() == page

    assert run_build(*where)[0] == 0
    assert run_build(*where, "--check")[0] == 0
    text = (tmp_path / "README.md").read_text()
    assert "| SmolLM2-135M | Uni | 90.00 ± 0.20 |" in text
    assert "old" not in text
    assert text.endswith("<!-- /table -->\n\nEnd.\n")

    made.add(tmp_path, "word_probing", "smollm2-135m", "uni", NONE, "pos", 0.5)
    (tmp_path / "tables" / "gone.md").write_text("of an earlier version")
    code, output = run_build(*where, "--check")
    assert code == 1
    changed = {line.rsplit("/", 1)[-1] for line in output.splitlines() if "out of date" in line}
    assert {"scores.csv", "words.md", "words.csv", "README.md", "gone.md"} <= changed
    assert "table4.md" not in changed
    run_build(*where)
    assert not (tmp_path / "tables" / "gone.md").exists()
    assert run_build(*where, "--check")[0] == 0


def test_a_picture_of_older_records_is_out_of_date(tmp_path: Path) -> None:
    made.add_words(tmp_path, "smollm2-135m")
    where = ("--results", str(tmp_path))
    assert run_build(*where, "--figures")[0] == 0
    assert run_build(*where, "--check")[0] == 0
    made.add(tmp_path, "word_probing", "smollm2-135m", "bi", NONE, "pos", 0.5)
    assert run_build(*where)[0] == 0  # the tables, and the data of the figures
    code, output = run_build(*where, "--check")
    assert code == 1 and "figure2.png" in output and "make figures" in output
    assert "figure2_paper.png" not in output
    assert run_build(*where, "--figures")[0] == 0
    assert run_build(*where, "--check")[0] == 0


def test_a_hand_edited_or_carriage_returned_file_is_out_of_date(tmp_path: Path) -> None:
    where = ("--results", str(tmp_path))
    run_build(*where)
    path = tmp_path / "tables" / "table4.md"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    code, output = run_build(*where, "--check")
    assert code == 1
    assert output.count("out of date") == 1


def test_a_quick_run_leaves_the_repositorys_readme_alone(tmp_path: Path) -> None:
    files = build.generate(load_results(tmp_path))
    assert ROOT / "README.md" not in files
    assert all(path.is_relative_to(tmp_path) for path in files)


def test_show_prints_one_table_and_writes_nothing(tmp_path: Path) -> None:
    made.add_words(tmp_path, "smollm2-135m")
    code, output = run_build("--results", str(tmp_path), "--show", "words")
    assert code == 0
    assert output.startswith("| Model | Variant | Chunking |")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_wrong_names_and_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'words'"):
        build.make_table("wordz", load_results(tmp_path))
    with pytest.raises(SettingError, match="no folder"):
        run_build("--results", str(tmp_path / "nowhere"))


def test_analysis_needs_no_torch() -> None:
    modules = sorted(path.stem for path in (ROOT / "analysis").glob("*.py"))
    code = (
        f"import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'mteb', "
        f"'datasets', 'peft', 'sentence_transformers'])); "
        f"import {', '.join('analysis.' + name for name in modules if name != '__init__')}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------- pages
def block(name: str) -> str:
    return f"| {name} |\n|---|\n"


def test_fill_replaces_blocks_and_nothing_else() -> None:
    page = "a\n<!-- table:x -->\nold\n<!-- /table -->\nb <!-- table:y --> c\n"
    filled = fill(page, block, "page")
    assert filled == (
        "a\n<!-- table:x -->\n\n| x |\n|---|\n\n<!-- /table -->\nb <!-- table:y --> c\n"
    )


@given(st.lists(st.sampled_from(["text", "", "<!-- table:x -->\n<!-- /table -->"]), max_size=6))
def test_fill_is_idempotent(parts: list[str]) -> None:
    once = fill("\n".join(parts), block, "page")
    assert fill(once, block, "page") == once


@pytest.mark.parametrize(
    ("page", "line"),
    [
        ("a\n<!-- table:x -->\nb", "line 2"),
        ("<!-- /table -->", "line 1"),
        ("<!-- table:x -->\n<!-- table:y -->\n<!-- /table -->", "line 1"),
    ],
)
def test_fill_names_the_line_of_a_bad_marker(page: str, line: str) -> None:
    with pytest.raises(SettingError, match=f"page, {line}"):
        fill(page, block, "page")


def test_fill_names_the_page_of_an_unknown_table(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("\n<!-- table:wordz -->\n<!-- /table -->\n")
    with pytest.raises(SettingError, match=r"README\.md, line 2: unknown table 'wordz'"):
        build.generate(load_results(tmp_path))


def test_scores_csv_reads_back(full: Results, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(to_csv(full.scores))
    again = pd.read_csv(path)
    assert len(again) == len(full.scores) == len(full.records)
    assert list(again["score"]) == list(full.scores["score"])
