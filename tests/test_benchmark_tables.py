"""Tables made of benchmark results."""

import json
from pathlib import Path
from typing import Any

import pytest
from latex_check import check_latex

from analysis import build, tables_performance
from analysis.collect import load_results
from analysis.render import to_csv, to_markdown, to_tex
from benchmarks import report
from llm2vec.errors import RecordError

ROOT = Path(__file__).resolve().parents[1]


# --------------------------------------------------------------------------- files and tables
def values_of(benchmark: str, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "benchmark": benchmark, "rows": rows, "settings": {}, "seeds": [0],
        "machine": {"processor": "a processor", "cores": 2, "memory_gb": 8.0, "load": 0.1},
        "provenance": {"commit": "0123456789ab", "dirty": False, "started": "2026-01-02T03:04:05"},
        **more,
    }  # fmt: skip


def encode_row(dtype: str, side: str, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "dtype": dtype, "mix": "short", "side": side, "tokens": 90, "padding": 10,
        "tokens_per_second": rate, "share_of_limit": rate / 500,
        "share_with_attention": rate / 450, "peak_mb": 1234.0,
        "lowest_cosine": None if side == "ours" else 0.99999, **more,
    }  # fmt: skip


LIMIT = {"flops_per_second": 1e11, "flops_per_second_layers": 8e10, "tokens_per_second": 500.0,
         "by": {"torch": 9e10, "onednn": 1e11}}  # fmt: skip
FILES = {
    "encode": values_of(
        "encode",
        [
            encode_row("float32", "ours", 450.0),
            encode_row("float32", "published", 300.0),
            encode_row("bfloat16", "ours", 900.0),
            encode_row("bfloat16", "sentence-transformers", 600.0),
        ],
        limits={"float32": LIMIT, "bfloat16": LIMIT},
    ),
    "training": values_of(
        "training",
        [
            {"stage": stage, "dtype": "bfloat16", "side": side, "tokens": 2048,
             "tokens_per_second": rate, "peak_mb": peak, "added_mb": peak / 2, "first_loss": 4.0}
            for stage in ("mntp", "simcse")
            for side, rate, peak in (("ours", 300.0, 1500.0), ("published", 200.0, 2500.0))
        ],
    ),
    "breakdown": values_of(
        "breakdown",
        [
            {"dtype": "float32", "mix": "long", "tokens": 90, "padding": 10, "seconds": 2.0,
             "tokens_per_second": 45.0, "share_of_limit": 0.72,
             "parts": {"products": 1.6, "attention": 0.2, "layers": 0.1, "tokenizing": 0.02,
                       "rest": 0.08}},
        ],
    ),
    "choices": values_of(
        "choices",
        [
            {"dtype": "float32", "mix": mix, "choice": choice, "seconds": 2 / ratio, "all": [],
             "ratio": ratio, "warm_up_seconds": 33.3}
            for mix in ("short", "long")
            for choice, ratio in (("as it is", 1.0), ("packed", 0.8), ("compiled", 1.1))
            if (mix, choice) != ("long", "packed")
        ],
    ),
    "word_features": values_of(
        "word_features",
        [
            {"way": "published", "tokens": 9000, "padding": 4500, "here": False,
             "backbone_seconds": 90.0, "probe_seconds": None, "seconds": 90.0},
            {"way": "here", "tokens": 1000, "padding": 10, "here": True,
             "backbone_seconds": 10.0, "probe_seconds": 5.0, "seconds": 15.0},
        ],
        settings={"sentences": 500, "steps": 20},
        measured={"token": 0.002, "share_of_limit": 0.8, "peak_mb": 900.0},
    ),
    "scale": values_of(
        "scale",
        [
            {"kind": "encode", "texts": 1000, "seconds": 0.5, "output_mb": 0.1, "added_mb": 20.1},
            {"kind": "start", "command": "make help", "seconds": 0.02},
        ],
    ),
    "grid_cost": values_of(
        "grid_cost",
        [
            {"table": "Table 5", "way": "published", "tokens": 3000, "padding": 300, "here": False},
            {"table": "Table 5", "way": "here", "tokens": 1000, "padding": 10, "here": True},
        ],
        notes=["counted from real texts"],
    ),
    "retrieval_memory": values_of(
        "retrieval_memory",
        [
            {"passages": 10_000, "texts": 7e5, "vectors": 2e7, "before": 6e8, "peak": 8e8,
             "seconds": 17.2},
        ],
        settings={"hidden_size": 512},
    ),
}  # fmt: skip


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A results folder with the files of every benchmark beside it."""
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for name, values in FILES.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    root = tmp_path / "results"
    root.mkdir()
    return root


def cells(table: Any) -> list[list[str]]:
    return [[getattr(cell, "text", cell) for cell in row] for row in table.rows]


def test_encoding_shows_ratios_against_each_side(measured: Path) -> None:
    table = tables_performance.encoding(load_results(measured))
    by_side = {tuple(row[:3]): row[3:] for row in cells(table)}
    assert by_side["float32", "short", "here"][:3] == ["450", "90 % (100 %)", "10 %"]
    assert by_side["float32", "short", "here"][4:] == ["", "1.50x"]
    assert by_side["float32", "short", "published code"][4] == "1.50x"
    assert by_side["bfloat16", "short", "here"][5] == "3.00x"
    assert by_side["bfloat16", "short", "sentence-transformers"][4] == "1.50x"
    assert table.breaks == {2}
    notes = " ".join(table.notes)
    assert "100 GFLOP/s = 500 tokens/s" in notes
    assert "torch 90%, onednn 100%" in notes
    assert "80% of it" in notes
    assert "0.99999" in notes
    assert "a processor, 2 cores, 2026-01-02" in notes
    assert "busy" not in notes


@pytest.mark.parametrize("name", FILES)
def test_latex_of_what_was_measured_is_well_formed(name: str) -> None:
    for table in tables_performance.tables_of(FILES[name]):
        assert check_latex(to_tex(table)) >= len(table.rows) + 1
        assert to_csv(table).count("\n") == len(FILES[name]["rows"]) + 1


def test_a_busy_machine_is_told() -> None:
    values = FILES["scale"] | {"machine": FILES["scale"]["machine"] | {"load": 5.5}}
    assert "busy (load 5.5" in " ".join(tables_performance.scale_of(values).notes)


def test_training_shows_speed_and_memory_as_ratios(measured: Path) -> None:
    rows = cells(tables_performance.training(load_results(measured)))
    assert [row[0] for row in rows] == ["MNTP", "MNTP", "SimCSE", "SimCSE"]
    assert rows[0][-2:] == ["", ""]
    assert rows[1][-2:] == ["1.50x", "60 %"]


def test_the_breakdown_explains_the_share_of_the_limit(measured: Path) -> None:
    """Products' share x how near they come to the limit x what is not padding = the share."""
    (row,) = cells(tables_performance.breakdown(load_results(measured)))
    assert row == ["float32", "long", "45", "72 %", "80 %", "10 %", "5 %", "1 %", "4 %", "10 %",
                   "100 %"]  # fmt: skip


def test_choices_stand_beside_the_default(measured: Path) -> None:
    table = tables_performance.choices(load_results(measured))
    assert table.header == ["Dtype", "Choice", "short", "long"]
    assert cells(table) == [
        ["float32", "packed", "0.80x", "–"], ["float32", "compiled", "1.10x", "1.10x"],
    ]  # fmt: skip
    assert "Until compiled layers were ready: float32 33 s" in " ".join(table.notes)


def test_word_features_are_told_as_ratios_for_as_many_probes(measured: Path) -> None:
    table = tables_performance.words(load_results(measured))
    assert cells(table) == [
        ["published", "9,000", "50 %", "90", "–", "90", "9.0x", "6.0x"],
        ["here", "1,000", "1 %", "10", "5", "15", "", ""],
    ]  # fmt: skip
    assert "500 tokens/s, 80 % of the limit" in " ".join(table.notes)


def test_scale_and_start_up_share_a_file(measured: Path) -> None:
    results = load_results(measured)
    (row,) = cells(tables_performance.scale(results))
    assert row == ["1,000", "0.50", "2,000", "0.1", "20", "20"]
    assert cells(tables_performance.startup(results)) == [["make help", "0.02"]]


def test_the_grid_shows_how_many_times_fewer(measured: Path) -> None:
    rows = cells(tables_performance.grid(load_results(measured)))
    assert rows == [
        ["Table 5", "published", "3,000", "10 %", "3.0x"],
        ["", "here", "1,000", "1 %", ""],
    ]


def test_memory_of_a_search_is_in_megabytes_above_the_start(measured: Path) -> None:
    rows = cells(tables_performance.retrieval(load_results(measured)))
    assert rows == [["10,000", "0.7", "20", "800", "200", "17"]]


def test_without_a_file_a_table_says_not_run(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    results = load_results(tmp_path / "results")
    names = [name for name in build.TABLES if name.startswith("performance")]
    assert len(names) == 10
    for name in names:
        table = build.make_table(name, results)
        assert "not run" in to_markdown(table), name


@pytest.mark.parametrize("damage", ["{", "[]", '{"benchmark": "encode"}', '{"benchmark": "x"}'])
def test_a_damaged_file_is_named(measured: Path, damage: str) -> None:
    (measured.parent / "benchmarks" / "results" / "encode.json").write_text(damage)
    with pytest.raises(RecordError, match=r"encode\.json: not what a benchmark writes"):
        tables_performance.encoding(load_results(measured))


def test_the_page_names_every_table() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in build.TABLES:
        if name.startswith("performance"):
            assert f"<!-- table:{name} -->" in page, name


def test_a_report_carries_its_origin_and_prints_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = report.Report("scale", {"texts": [1000]}, [0])
    file = made.write(tmp_path, rows=FILES["scale"]["rows"])
    values = json.loads(file.read_text())
    assert file.name == "scale.json"
    assert {"commit", "dirty", "versions", "command", "started"} <= values["provenance"].keys()
    assert (values["seeds"], values["settings"]) == ([0], {"texts": [1000]})
    assert values["machine"]["cores"] > 0
    said = capsys.readouterr().out
    assert "Encoding many texts" in said
    assert "make help" in said
