"""TwentyNewsgroups from reconstructed data: it runs, and its score never passes for one of MTEB."""

from pathlib import Path

import pandas as pd
import pytest
from tiny_mirror import StubEncoder, add_task, few_resamples

from analysis import render
from analysis.build import TABLES, make_table
from analysis.collect import load_results
from llm2vec.evaluation import execute, plan
from llm2vec.mteb_tasks import load_task
from llm2vec.registry import POOLINGS, get_task
from llm2vec.results import iter_records

TASK = get_task("TwentyNewsgroupsClustering")
MODEL = "smollm2-135m"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of one variant on data that the manifest calls reconstructed."""
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llm2vec.mteb_tasks.bootstrap_interval", few_resamples)
    monkeypatch.setattr("llm2vec.encoder.load_encoder", lambda m, v, **_: StubEncoder(m, v))
    add_task(tmp_path / "mirror", TASK, "reconstructed")
    run = plan(MODEL, "uni", "subset", tmp_path / "results", task=TASK.name)
    assert execute(run, device="cpu") == len(POOLINGS)
    return tmp_path / "results"


def test_its_records_carry_the_status(results: Path) -> None:
    records = list(iter_records(results))
    assert {r.pooling for r in records} == set(POOLINGS)
    assert {r.dataset["status"] for r in records} == {"reconstructed"}
    assert {(r.metric, r.split, r.n) for r in records} == {("v_measure", "test", 2)}
    assert {r.hyperparameters["instruction"] for r in records} == {
        "Identify the topic or theme of the given news articles:"
    }


def test_every_table_that_shows_its_score_shows_the_mark(results: Path) -> None:
    """All of them are at 100.00 here, which nothing else is."""
    loaded = load_results(results)
    texts = {name: render.to_markdown(make_table(name, loaded)) for name in TABLES}
    showing = {name for name, text in texts.items() if "100.00" in text}
    assert "subset_tasks" in showing
    for name in showing:
        assert "TwentyNewsgroups (reconstructed)" in texts[name], name
    means = [c for c in make_table("subset_tasks", loaded).header if " of 15 tasks" in str(c)]
    assert means
    row = next(line for line in texts["subset_tasks"].splitlines() if "100.00" in line)
    assert row.count("100.00") == 1  # the task's own column, no mean


def test_no_column_of_the_paper_takes_it_in(results: Path) -> None:
    for variant in ("uni", "bi"):
        run = plan("mistral-7b", variant, "subset", results, task=TASK.name)
        assert execute(run, device="cpu") == len(POOLINGS)
    loaded = load_results(results)
    cell = loaded.mteb["mistral-7b", "uni", "mean"]
    assert (cell[TASK.name].value, cell[TASK.name].mark) == (100.0, "reconstructed")
    for name in ("table1", "table5", "table11", "verdicts"):
        assert "100.00" not in render.to_markdown(make_table(name, loaded)), name
        assert "100.0" not in render.to_csv(make_table(name, loaded)).split(), name


def test_the_mirrors_reconstruction_has_the_shape_of_the_original(mirror_env: Path) -> None:
    loaded, source = load_task(TASK)
    split = loaded.dataset["test"]
    assert source.status == "reconstructed"
    assert len(split) == 10  # sets of titles, as in mteb's description
    assert sum(len(row["sentences"]) for row in split) == 59_545
    assert all(len(row["sentences"]) == len(row["labels"]) for row in split)
    assert len({str(label) for row in split for label in row["labels"]}) == 20
    texts = pd.Series([text for row in split for text in row["sentences"]])
    assert texts.nunique() == pytest.approx(5242, rel=0.05)
