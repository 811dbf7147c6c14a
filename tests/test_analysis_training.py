"""Tables of training: each score in its own cell, missing ones marked, damage named."""

import json
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as made
from latex_check import check_latex

from analysis import (
    render,
    tables_ablations,
    tables_adapters,
    tables_checks,
    tables_cost,
    tables_log,
    tables_plan,
)
from analysis.collect import Results, load_results
from analysis.render import Cell, Table
from analysis.trainings import trainings
from llm2vec.errors import RecordError
from llm2vec.registry import MNTP, SimCSE, settings_dict
from llm2vec.registry_ablations import ABLATIONS, WIKITEXT, Ablation
from llm2vec.registry_datasets import SENTENCES, STAND_IN
from llm2vec.results import NONE

MODEL = "smollm2-135m"


def add(root: Path, run: Ablation, score: float) -> None:
    """Records of everything that a run is measured by, with the same score."""
    for measured in run.measured:
        pooling = NONE if measured.task == WIKITEXT else "mean"
        made.add(
            root, "ablations", MODEL, run.variant, pooling, measured.task, score,
            setting=run.name, split=measured.split, interval=(score - 0.01, score + 0.01),
            scores={"training": {"tokens": 51_200, "final_loss": 3.5} if run.varied else {}},
        )  # fmt: skip


def texts(table: Table) -> list[list[str]]:
    return [[c.text if isinstance(c, Cell) else c for c in row] for row in table.rows]


def column(table: Table, heading: str) -> list[str]:
    return [row[list(table.header).index(heading)] for row in texts(table)]


def grid(group: str, **varied: Any) -> Ablation:
    (run,) = (r for r in ABLATIONS[group] if r.varied and dict(r.varied) == varied)
    return run


# --------------------------------------------------------------------------- sensitivity
@pytest.fixture
def some(tmp_path: Path) -> Results:
    """Three runs of MNTP, the untrained model among them; nothing of SimCSE."""
    add(tmp_path, ABLATIONS["mntp-lr"][0], 0.1)
    add(tmp_path, grid("mntp-lr", learning_rate=5e-5, steps=25), 0.12)
    add(tmp_path, grid("mntp-lr", learning_rate=1e-3, steps=100), 0.4321)
    return load_results(tmp_path)


def test_each_learning_rate_and_step_count_has_its_own_cell(some: Results) -> None:
    table = tables_ablations.sensitivity(some)
    rates = column(table, "Learning rate")
    assert rates[:4] == ["5e-05 (published)", "0.0005", "0.001", "0.002"]
    assert rates[4] == "3e-05 (published)"
    assert column(table, "100 steps")[:4] == ["–", "–", "43.21", "–"]
    assert column(table, "25 steps")[:4] == ["12.00", "–", "–", "–"]
    assert column(table, "Untrained")[:1] == ["10.00"]
    best = [c.text for row in table.rows for c in row if isinstance(c, Cell) and c.bold]
    assert best == ["43.21"]
    assert table.tasks == "3 of 24 measurements"


def test_what_is_not_in_the_grid_is_empty_and_what_was_not_run_is_marked(some: Results) -> None:
    table = tables_ablations.sensitivity(some)
    assert column(table, "100 steps")[4:] == [""] * 7  # SimCSE's grids end before
    assert column(table, "20 steps")[4:] == ["–"] * 7
    assert column(table, "40 steps")[4:] == [""] * 4 + ["–"] * 3
    assert column(table, "Untrained")[4:] == ["–", *[""] * 6]  # after MNTP: no untrained run
    data = table.data
    assert len(data) == 24 and data["score"].notna().sum() == 3
    assert set(data["split"]) == {"validation"}


def test_ablations_are_no_departures_and_no_evidence(some: Results) -> None:
    assert texts(tables_checks.departures(some))[0][0] == "none"
    assert not some.mteb


# --------------------------------------------------------------------------- ablations
def test_ablation_rows_say_what_varies(tmp_path: Path) -> None:
    add(tmp_path, ABLATIONS["mntp-masking"][0], 0.30)
    add(tmp_path, grid("mntp-masking", mask_probability=0.8, masking="all"), 0.35)
    add(tmp_path, grid("simcse-padding", pool_over_padding=True, seed=43), 0.25)
    table = tables_ablations.ablations(load_results(tmp_path))
    rows = {row[2]: row for row in texts(table)}
    assert rows["nothing (untrained)"][1:] == [
        "Bi", "nothing (untrained)", "", "", "30.00 [29.00, 31.00]",
    ]  # fmt: skip
    assert rows["masked 80 %, style all"][3:] == ["51,200", "", "35.00 [34.00, 36.00]"]
    assert rows["masked 80 %, style bert"][3:] == ["", "", "–"]
    padded = rows["pooled over padding yes, seed 43"]
    assert padded[4:] == ["25.00 [24.00, 26.00]", "25.00 [24.00, 26.00]"]
    assert rows["pooled over padding no, seed 43"][4:] == ["–", "–"]
    assert len(table.rows) == sum(len(ABLATIONS[g]) for g in tables_ablations.OTHERS)
    assert len(table.breaks) == len(tables_ablations.OTHERS) - 1


# --------------------------------------------------------------------------- adapters
def add_adapter(root: Path, stage: str, **changes: Any) -> Path:
    used = MNTP(learning_rate=1e-3) if stage == "mntp" else SimCSE()
    note = {
        "hyperparameters": settings_dict(used),
        "data": [{"id": "wiki-sentences", "revision": "m", "source": "mirror", "status": "x"}],
        "steps": 1000, "epochs": 0.5, "tokens": 2_048_000, "final_loss": 3.14159, "seconds": 1234.5,
        "model": MODEL, "stage": stage, "adapter_sha256": "ab", "provenance": made.PROVENANCE,
    } | changes  # fmt: skip
    file = root / "adapters" / MODEL / stage / "provenance.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(note))
    return file


def test_adapters_show_text_size_loss_accuracy_and_departures(tmp_path: Path) -> None:
    accuracy = {"before": {"accuracy": 0.0912}, "after": {"accuracy": 0.4}}
    add_adapter(tmp_path, "mntp-simcse")
    add_adapter(tmp_path, "mntp", masked_accuracy=accuracy)
    table = tables_adapters.training(load_results(tmp_path))
    mntp, simcse = texts(table)  # in the order of the recipe
    assert mntp == [
        "SmolLM2-135M", "mntp", "wiki-sentences (mirror, x)", "1,000", "2,048,000", "1,234",
        "cpu", "3.142", "9.12 → 40.00", "learning rate 5e-05 → 0.001",
    ]  # fmt: skip
    assert simcse[1] == "mntp-simcse" and simcse[-2:] == ["", "none"]
    assert table.data["accuracy_after"].tolist()[0] == 0.4
    assert table.origin.commits == (made.PROVENANCE["commit"][:10],)


def test_a_training_shorter_than_the_papers_is_among_what_was_not_run(tmp_path: Path) -> None:
    (tmp_path / "mirror.csv").write_text("task,status\n")
    short = settings_dict(SimCSE(steps=100, batch_size=32))
    of_rate = settings_dict(SimCSE(learning_rate=1e-3))  # another rate, at full length
    for stage, used in (
        ("bi-simcse", of_rate), ("uni-simcse", short), ("mntp-simcse", short),
    ):  # fmt: skip
        add_adapter(tmp_path, stage, hyperparameters=used)
    table = tables_plan.not_run(load_results(tmp_path))
    (row,) = (row for row in texts(table) if row[0] == "Training at full length")
    assert row[1:5] == [
        "SmolLM2-135M", "uni-simcse, bi-mntp-simcse: steps 1,000, batch size 128", "2", "a GPU",
    ]  # fmt: skip
    assert row[5].endswith("--variant VARIANT --steps 1000 --batch-size 128")


def test_a_text_that_stands_in_does_not_go_by_the_real_ones_name(tmp_path: Path) -> None:
    data = [
        {"id": SENTENCES, "revision": "mirror", "source": "mirror", "status": STAND_IN},
        {"id": "wikipedia-sample", "revision": "r", "source": "asset", "status": STAND_IN},
    ]
    add_adapter(tmp_path, "mntp", data=data)
    (row,) = texts(tables_adapters.training(load_results(tmp_path)))
    first, second = row[2].split("; ")
    assert first == f"wiki-sentences (mirror, in place of {SENTENCES})"
    assert second == f"wikipedia-sample (asset, {STAND_IN})"


def test_accuracy_that_could_not_be_measured_is_marked(tmp_path: Path) -> None:
    add_adapter(tmp_path, "mntp", masked_accuracy={"not measured": "no Wikitext"})
    assert texts(tables_adapters.training(load_results(tmp_path)))[0][8] == "–"


def test_trainings_count_once_beside_what_was_measured(tmp_path: Path) -> None:
    """Two records of one adapter, a third that used it again, and the shipped adapter's own."""
    add_adapter(tmp_path, "mntp")
    spent = {"tokens": 700, "seconds": 90.0, "final_loss": 0.25}
    for setting, task, day in (
        ("simcse-padding-false-42", "STSBenchmark", 2), ("simcse-padding-false-42", "SICK-R", 3),
        ("simcse-dropout-0.3-42", "SICK-R", 4),
    ):  # fmt: skip
        made.add(tmp_path, "ablations", MODEL, "bi-simcse", "mean", task, 0.5, setting=setting,
                 scores={"training": spent}, cost={"seconds": 10.0, "tokens": 100},
                 provenance=made.PROVENANCE | {"started": f"2026-01-0{day}T00:00:00+00:00",
                                               "command": setting})  # fmt: skip
    results = load_results(tmp_path)
    cost = tables_cost.cost(results).data.set_index(["experiment", "variant"])
    assert list(cost.loc[("training", "bi-mntp"), ["tokens", "seconds"]]) == [2_048_000, 1234.5]
    assert list(cost.loc[("training", "bi-simcse"), ["tokens", "seconds"]]) == [700, 90]
    assert cost.loc[("ablations", "bi-simcse"), "seconds"] == 30
    runs = tables_log.runs_of(results)
    per = runs.groupby("command")[["records", "seconds"]].sum()
    assert list(per.loc["simcse-padding-false-42"]) == [2, 110]
    assert list(per.loc["simcse-dropout-0.3-42"]) == [1, 10]
    assert runs["seconds"].sum() == 1234.5 + 90 + 30


def test_a_longer_training_counts_with_what_it_added(tmp_path: Path) -> None:
    """25, 50 and 100 steps of one run cost what the longest says, in the command that ran them."""
    for steps, seconds, rate, command in (
        (25, 70.0, 0.1, "first"), (50, 142.5, 0.1, "first"), (100, 278.0, 0.1, "second"),
        (50, 150.0, 0.2, "second"),
    ):  # fmt: skip
        training = {"learning_rate": rate, "seed": 42, "steps": steps}
        spent = {"tokens": 512 * steps, "seconds": seconds, "final_loss": 5 - steps / 100,
                 "data_hash": "d"}  # fmt: skip
        made.add(tmp_path, "ablations", MODEL, "bi-mntp", NONE, "wikitext", 0.5,
                 setting=f"mntp-lr-{rate}-{steps}", scores={"training": spent},
                 hyperparameters={"training": training}, cost={"seconds": 1.0, "tokens": 1},
                 provenance=made.PROVENANCE | {"command": command})  # fmt: skip
    results = load_results(tmp_path)
    cost = tables_cost.cost(results).data.set_index("experiment")
    assert list(cost.loc["training", ["runs", "tokens", "seconds"]]) == [
        4, 512 * (100 + 50), 278 + 150,
    ]  # fmt: skip
    per = tables_log.runs_of(results).set_index("command")["seconds"]
    assert per.to_dict() == {"first": 142.5 + 2, "second": 278 - 142.5 + 150 + 2}


def test_a_shorter_training_that_took_longer_is_in_no_other(tmp_path: Path) -> None:
    for steps, seconds in ((25, 90.0), (50, 80.0)):
        spent = {"tokens": 512 * steps, "seconds": seconds, "final_loss": 4.0}
        made.add(tmp_path, "ablations", MODEL, "bi-mntp", NONE, "wikitext", 0.5,
                 setting=f"mntp-lr-0.1-{steps}", scores={"training": spent},
                 hyperparameters={"training": {"steps": steps}})  # fmt: skip
    assert [t.seconds for t in trainings(load_results(tmp_path))] == [90, 80]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"data": [], "steps": "x"}'])
def test_a_damaged_provenance_is_named(tmp_path: Path, text: str) -> None:
    add_adapter(tmp_path, "mntp").write_text(text)
    with pytest.raises(RecordError, match=r"mntp/provenance\.json: not the provenance"):
        tables_adapters.training(load_results(tmp_path))


def test_latex_is_well_formed(some: Results) -> None:
    add_adapter(some.root, "mntp")
    for make in (
        tables_ablations.sensitivity, tables_ablations.ablations, tables_adapters.training,
    ):  # fmt: skip
        check_latex(render.to_tex(make(some)))
