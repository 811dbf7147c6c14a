"""What was not run has a reason that follows from data; the plan of larger runs adds up."""

import csv
from pathlib import Path

import pandas as pd
import pytest
import synthetic_records as made
from tiny_mirror import add_task

from analysis import tables_own, tables_plan
from analysis.collect import Results, load_results
from analysis.paper import printed
from analysis.render import Cell, Table
from llm2vec import mirror_report
from llm2vec.costs import START
from llm2vec.errors import RecordError, SettingError
from llm2vec.registry import SUITES, get_task
from llm2vec.results import NONE

SMALL = "smollm2-135m"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("results")
    made.add_everything(root)
    write_held(root, dict.fromkeys(SUITES["exact8"], "exact") | {
        "CoNLL-2003": "exact", "TwentyNewsgroupsClustering": "reconstructed",
        "ArguAna": "absent", "MassiveIntentClassification": "exact, row order differs",
    })  # fmt: skip
    return load_results(root)


def write_held(root: Path, statuses: dict[str, str]) -> None:
    with open(root / "mirror.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("task", "status"), *statuses.items()])


def shown(table: Table) -> pd.DataFrame:
    rows = [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in table.rows]
    frame = pd.DataFrame(rows, columns=list(table.header))
    return frame.assign(Experiment=frame["Experiment"].replace("", None).ffill())


def test_each_reason_follows_from_model_and_data(full: Results) -> None:
    data = tables_plan.not_run(full).data
    part = data[(data["part"] == "subset") & (data["model"] == SMALL)]
    why = part.groupby("task")["reason"].unique().str.join("|")
    assert why["ArguAna"] == "data not in the mirror"
    assert why["TwentyNewsgroupsClustering"] == "data only reconstructed in the mirror"
    # synthetic records have no variant with SimCSE alone
    missing = part[part["task"] == "SciFact"]
    assert set(missing["variant"]) == {"uni-simcse", "bi-simcse"}
    assert why["SciFact"] == why["MassiveIntentClassification"] == "time"
    reasons = data.groupby("model")["reason"].unique().str.join("|")
    assert (
        reasons["mistral-7b"] == reasons["s-llama-1.3b"] == "needs weights from the hub and a GPU"
    )
    assert reasons["bert-base"] == "needs weights from the hub"
    assert set(data.loc[data["part"] == "words", "variant"]) >= {"bi-simcse"}


def test_rows_gather_what_is_alike_and_name_the_command(full: Results) -> None:
    table = shown(tables_plan.not_run(full))
    mine = table[(table["Experiment"] == "MTEB subset") & (table["Models"] == "SmolLM2-135M")]
    (row,) = mine[mine["Why"].str.startswith("time")].itertuples()
    assert "Uni + SimCSE, Bi + SimCSE: " in row._3
    assert "SciFact" in row._3 and "ArguAna" not in row._3
    assert row.Command == "make reproduce-mteb SUITE=subset MODEL=smollm2-135m"
    (gpu,) = table[table["Models"] == "LLaMA-2-7B, Mistral-7B, LLaMA-3-8B"].itertuples()
    assert gpu._3 == "everything"
    assert gpu.Command == "make reproduce-all MODEL=llama-2-7b,mistral-7b,llama-3-8b PROFILE=gpu"
    (rest,) = table[(table["Experiment"] == "MTEB, 56 tasks")
                    & (table["Models"] == "S-LLaMA-1.3B")].itertuples()  # fmt: skip
    assert rest.Command == "make reproduce-mteb-full MODEL=s-llama-1.3b PROFILE=gpu"
    assert table["Records"].astype(int).sum() == len(tables_plan.not_run(full).data)


def test_every_empty_cell_of_the_small_models_table_has_a_reason(full: Results) -> None:
    """Whatever row the table has, Echo's included, its empty cells are among what was not run."""
    data = tables_plan.not_run(full).data
    listed = set(data[["model", "variant", "pooling", "task"]].itertuples(index=False, name=None))
    have = {(*names, task) for names, cell in full.mteb.items() for task in cell}
    rows = {names[:3] for names in have if names[0] == SMALL}
    rows -= {(SMALL, "echo", pooling) for pooling in ("eos", "weighted_mean")}  # made up here alone
    empty = {(*names, task) for names in rows for task in SUITES["subset"]} - have
    assert ("echo", "mean") in {names[1:] for names in rows}
    assert empty and empty <= listed
    assert not listed & have
    cells = [cell for row in tables_own.subset_tasks(full).rows for cell in row]
    assert any(isinstance(cell, Cell) and cell.text == "–" for cell in cells)


def test_the_demonstration_corpus_is_part_of_what_was_not_run(tmp_path: Path) -> None:
    write_held(tmp_path, {})
    made.add(tmp_path, "word_probing", SMALL, "bi", NONE, "mini-ner", 0.9)
    data = tables_plan.not_run(load_results(tmp_path)).data
    mini = data.loc[data["part"] == "word_probing", ["variant", "task"]]
    lacking = set(mini.itertuples(index=False, name=None))
    assert ("bi", "mini-ner") not in lacking
    assert {("bi", "mini-pos"), ("bi-mntp", "mini-ner")} <= lacking


def test_what_was_run_is_gone_from_the_table(tmp_path: Path) -> None:
    write_held(tmp_path, {})
    empty = load_results(tmp_path)
    before = tables_plan.not_run(empty).data
    made.add(tmp_path, "word_probing", SMALL, "bi", NONE, "ner", 0.9)
    made.add(tmp_path, "mteb_full", SMALL, "bi", "mean", "STS17", 0.5)
    made.add(tmp_path, "ablations", SMALL, "bi-mntp", NONE, "wikitext", 0.2,
             setting="mntp-lr-0.001-25")  # fmt: skip
    made.add_sink(tmp_path, SMALL)
    after = tables_plan.not_run(load_results(tmp_path)).data
    assert len(before) - len(after) == 3 + 11
    gone = pd.concat([before, after]).drop_duplicates(keep=False)
    assert set(gone["part"]) == {"words", "subset", "ablations", "attention_sink"}
    row = shown(tables_plan.not_run(load_results(tmp_path))).set_index("Experiment")
    assert "bi (" not in row.loc["Attention sink", "Not run"]
    assert "mntp-lr (12 of 13)" in row.loc["Ablations", "Not run"]


def test_hours_grow_with_what_is_missing(full: Results, tmp_path: Path) -> None:
    lines = [line for line in tables_plan._lines(list(tables_plan.gaps(full)))
             if line.reason == tables_plan.TIME and line.models == (SMALL,)]  # fmt: skip
    hours = {line.part: tables_plan._Hours(full).of(line) for line in lines}
    assert hours["subset"] > 0 and hours["words"] > 0
    (line,) = (line for line in lines if line.part == "subset")
    fewer = tables_plan.Line(
        line.part, line.models, line.reason, line.what,
        tuple(gap for gap in line.gaps if gap.place[0] == "bi-simcse"),
    )  # fmt: skip
    assert tables_plan._Hours(full).of(fewer) < hours["subset"]


def test_hours_are_of_the_poolings_that_each_task_lacks(full: Results) -> None:
    """Not of every pooling that some task lacks times every task; the model is loaded once."""

    def line(*places: tuple[str, str]) -> tables_plan.Line:
        gaps = [tables_plan.Gap("subset", SMALL, ("bi", pooling), task, tables_plan.TIME)
                for task, pooling in places]  # fmt: skip
        return tables_plan.Line("subset", (SMALL,), tables_plan.TIME, "", tuple(gaps))

    first, second = ("SciFact", "mean"), ("NFCorpus", "eos")
    hours = tables_plan._Hours(full)
    apart = hours.of(line(first)) + hours.of(line(second))
    assert hours.of(line(first, second)) == pytest.approx(apart - START / 3600)


def test_a_list_of_the_mirror_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "mirror.csv").write_text("name,status\nx,exact\n")
    with pytest.raises(RecordError, match=r"mirror\.csv.*python -m llm2vec\.mirror_report"):
        tables_plan.not_run(load_results(tmp_path))


# --------------------------------------------------------------------------- the mirror
def test_the_list_says_what_a_mirror_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "mirror"
    add_task(root, get_task("STS17"))
    add_task(root, get_task("TwentyNewsgroupsClustering"), "reconstructed")
    folder = add_task(root, get_task("SciFact"))
    (folder / "corpus" / "corpus.parquet").unlink()
    monkeypatch.setenv("LLM2VEC_DATA", str(root))
    mirror_report.main(tmp_path)
    held = tables_plan.held(load_results(tmp_path))
    assert len(held) == 57
    assert (held["STS17"], held["SciFact"], held["CoNLL-2003"]) == ("exact", "absent", "absent")
    assert held["TwentyNewsgroupsClustering"] == "reconstructed"
    monkeypatch.delenv("LLM2VEC_DATA")
    with pytest.raises(SettingError, match="LLM2VEC_DATA names no mirror"):
        mirror_report.main(tmp_path)


def test_the_committed_list_is_that_of_the_mirror(mirror_env: Path, repo_root: Path) -> None:
    with open(repo_root / "results" / "mirror.csv", newline="") as handle:
        committed = [(row["task"], row["status"]) for row in csv.DictReader(handle)]
    assert committed == mirror_report.held_by(mirror_env)


# --------------------------------------------------------------------------- larger models
def test_the_plan_adds_up(full: Results) -> None:
    data = tables_plan.plan(full).data.set_index("model")
    assert list(data.index) == ["s-llama-1.3b", "llama-2-7b", "mistral-7b", "llama-3-8b"]
    assert data["hours"].tolist() == pytest.approx(
        (data["tokens"] / data["tokens_per_second"] / 3600).tolist()
    )
    hours = printed(6, full.paper).set_index(["model", "method"])["hours"]
    for model in ("s-llama-1.3b", "llama-2-7b", "mistral-7b"):
        assert data.loc[model, "paper_gpu_hours"] == 8 * hours[model, "llm2vec"]
    # no real run is faster than the arithmetic of its products
    assert (data["hours"] < data["paper_gpu_hours"].fillna(float("inf"))).all()
