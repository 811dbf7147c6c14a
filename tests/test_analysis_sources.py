"""Whose adapters a number was made with, and that no mean is over two sources."""

from pathlib import Path
from typing import Any

import pytest
import synthetic_records as made

from analysis import tables, tables_checks, tables_plan
from analysis.claims import evaluate
from analysis.collect import Results, load_results, mark_of
from analysis.evidence import collect_evidence
from analysis.paper import compare, verdict_counts
from analysis.render import Cell
from llm2vec import evaluation, leakage, word_evaluation
from llm2vec.errors import RecordError
from llm2vec.registry import MODELS, SUITES, VARIANTS
from llm2vec.results import NONE, Key

MODEL, VARIANT = "mistral-7b", "bi-mntp-simcse"
SUBSET = SUITES["subset"]


def commands_keys(root: Path) -> list[Key]:
    """What README's commands write with the authors' adapters, words and triples as well."""
    keys = []
    for suite in ("subset", "full"):
        run = evaluation.plan(MODEL, VARIANT, suite, root, adapters="published")
        keys += [run.key(task, pooling) for task in run.tasks for pooling in run.poolings]
    words = word_evaluation.plan(MODEL, VARIANT, adapters="published")
    keys += [words.key(*measured) for measured in word_evaluation.measurements(words)]
    triples = leakage.load_triples()
    return [*keys, leakage.key_of(MODELS[MODEL], VARIANTS[VARIANT], triples, whose="published")]


def add_key(root: Path, key: Key, score: float, **more: Any) -> None:
    axes = (key.experiment, key.model, key.variant, key.pooling, key.task)
    made.add(root, *axes, score, setting=key.setting, adapters=("aa", "bb"), **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("published")
    for key in commands_keys(root):
        gap = {"gap": 0.1, "gap_interval": [0.05, 0.15]}
        scores = {"scores": gap} if key.experiment == leakage.EXPERIMENT else {}
        add_key(root, key, 0.6, **scores)
    return load_results(root)


def cells_of(table: tables.Table) -> list[str]:
    return [c.text if isinstance(c, Cell) else c for row in table.rows for c in row]


# --------------------------------------------------------------------------- the authors' adapters
@pytest.mark.parametrize("number", [1, 4, 5, 11])
def test_numbers_of_the_authors_adapters_are_judged_and_marked(run: Results, number: int) -> None:
    frame = compare(number, run)
    own = frame[(frame["model"] == MODEL) & (frame["variant"] == VARIANT)]
    assert len(own) and "not run" not in set(own["verdict"])
    table = getattr(tables, f"table{number}")(run)
    assert any(text.endswith("§") for text in cells_of(table))
    assert tables.AUTHORS_NOTE in table.notes
    whose = table.data.set_index(["model", "variant"])["adapters"]
    assert set(whose.loc[[(MODEL, VARIANT)]]) == {"published"}
    assert set(whose.drop((MODEL, VARIANT))) == {""}
    assert set(verdict_counts(run).set_index("table")["not run"] > 0) == {True}, "the other models"


def test_what_the_authors_adapters_ran_is_not_missing(run: Results) -> None:
    parts = {"subset", "full", "words", "leakage"}
    gaps = [g for g in tables_plan.gaps(run) if g.model == MODEL and g.part in parts]
    assert gaps and VARIANT not in {gap.place[0] for gap in gaps}


def test_departures_are_not_the_authors_adapters_under_the_papers_alignment(run: Results) -> None:
    found = tables_checks.departures(run).data
    assert set(found["setting"]) == {"same-published"}  # the other alignment
    assert found["in_paper_setting"].notna().all()


def test_a_claim_says_whose_adapters_it_rests_on(run: Results, tmp_path: Path) -> None:
    for key in commands_keys(run.root):
        if key.experiment == "mteb_subset":
            add_key(tmp_path, key, 0.6 if key.pooling == "mean" else 0.5)
            for variant in ("uni", "bi", "bi-mntp"):
                axes = (key.experiment, MODEL, variant, key.pooling, key.task)
                made.add(tmp_path, *axes, 0.3)
    outcomes = evaluate(collect_evidence(load_results(tmp_path)))
    own = outcomes[(outcomes["source"] == "results") & (outcomes["kind"] == "subset")]
    tasks = own.set_index("claim")["tasks"]
    for claim in ("pooling-llm2vec", "simcse-best", "gain"):
        assert tasks[claim] == "15 of 15 tasks, with the authors' adapters"
    for claim in ("pooling-uni", "bi-mistral"):
        assert tasks[claim] == "15 of 15 tasks"
    assert not outcomes.loc[outcomes["source"] == "paper", "tasks"].str.contains("authors").any()


def test_a_mean_has_one_source_and_the_authors_goes_before(tmp_path: Path) -> None:
    (tmp_path / "mirror.csv").write_text("task,status\n")
    axes = ("mteb_subset", MODEL, VARIANT, "mean")
    for task in SUBSET:
        made.add(tmp_path, *axes, task, 0.4, adapters=("cc", "dd"))

    def row() -> Any:
        frame = tables.table5(load_results(tmp_path)).data
        return next(r for r in frame[frame["variant"] == VARIANT].itertuples()
                    if (r.model, r.column) == (MODEL, "mean"))  # fmt: skip

    assert (row().reproduced, row().adapters, tables.reproduced_text(row())[-1]) == (40, "own", "†")
    for task in SUBSET[:-1]:
        made.add(tmp_path, *axes, task, 0.6, adapters=("aa", "bb"), setting="published")
    assert (row().done, row().verdict, row().adapters) == (14, "not run", "published")
    assert tables.reproduced_text(row()) == "not run (14 of 15 tasks)†§"
    results = load_results(tmp_path)
    missing = [g.task for g in tables_plan.gaps(results)
               if (g.part, g.model, g.place) == ("subset", MODEL, (VARIANT, "mean"))]  # fmt: skip
    assert missing == [SUBSET[-1]], "what the table shows as missing"
    aside = tables_checks.departures(results)
    assert {row[4] for row in aside.rows} == {"own adapters"} and len(aside.rows) == 15
    made.add(tmp_path, *axes, SUBSET[-1], 0.6, adapters=("aa", "bb"), setting="published")
    assert row().reproduced == pytest.approx(60)


def test_a_variant_without_adapters_is_the_same_with_either(tmp_path: Path) -> None:
    for task, setting, score in (("ner", None, 0.90), ("ner", "published", 0.91),
                                 ("pos", None, 0.80)):  # fmt: skip
        made.add(tmp_path, "word_probing", MODEL, "uni", NONE, task, score, setting=setting)
    results = load_results(tmp_path)
    cell = results.words[MODEL, "uni", NONE]
    assert {task: score.value for task, score in cell.items()} == {"ner": 91.0, "pos": 80.0}
    assert len(results.of("word_probing")) == 2
    assert "§" not in "".join(cells_of(tables.table4(results)))


def test_the_authors_adapters_are_those_of_the_papers_models_alone(tmp_path: Path) -> None:
    for model in ("smollm2-135m", MODEL):
        made.add(tmp_path, "mteb_subset", model, VARIANT, "mean", "STS17", 0.5, setting="published")
    made.add(tmp_path, "layer_similarity", MODEL, "bi", NONE, "wikipedia", 0.5, setting="published")
    results = load_results(tmp_path)
    assert list(results.of("mteb_subset")["model"]) == [MODEL]
    assert not results.records_of("layer_similarity"), "of untrained weights"
    assert [r.model for r in results.records_of("mteb_subset")] == [MODEL]


# --------------------------------------------------------------------------- contradictions
@pytest.mark.parametrize("change", [{"adapters": ("bb",)}, {"model_revision": "other"}])
@pytest.mark.parametrize("other", [("mteb_subset", "SICK-R"), ("offline_suite", "OfflineLeeSTS")])
def test_two_adapters_or_revisions_in_one_variant_are_refused(
    tmp_path: Path, change: dict[str, Any], other: tuple[str, str]
) -> None:
    experiment, task = other
    axes = ("smollm2-135m", "bi-mntp", "mean")
    first = made.add(tmp_path, "mteb_full", *axes, "STS17", 0.5, adapters=("aa",))
    more = {"adapters": ("aa",)} | change
    made.add(tmp_path, "mteb_full", "smollm2-135m", "bi-simcse", "mean", "STS17", 0.5, **more)
    made.add(tmp_path, experiment, *axes, task, 0.5, setting="bfloat16", **more)
    load_results(tmp_path)  # another variant, another setting
    second = made.add(tmp_path, experiment, *axes, task, 0.5, **more)
    with pytest.raises(RecordError, match="Measure the older ones again") as error:
        load_results(tmp_path)
    assert str(first) in str(error.value) and str(second) in str(error.value)
    assert next(iter(change)) in str(error.value)


def test_a_task_of_both_sizes_of_mteb_has_one_score(tmp_path: Path) -> None:
    axes = ("smollm2-135m", "uni", "mean", "STS17")
    made.add(tmp_path, "mteb_subset", *axes, 0.5)
    made.add(tmp_path, "mteb_full", *axes, 0.501)  # as another machine may round it
    load_results(tmp_path)
    paths = [made.add(tmp_path, name, *axes, score)
             for name, score in (("mteb_full", 0.5), ("mteb_subset", 0.6))]  # fmt: skip
    with pytest.raises(RecordError, match="the same measurement") as error:
        load_results(tmp_path)
    assert all(str(path) in str(error.value) for path in paths)


# --------------------------------------------------------------------------- marks
@pytest.mark.parametrize(
    ("status", "mark"),
    [
        ("", "no status"), (" ", "no status"), (None, "no status"), (float("nan"), "no status"),
        ("modified", "modified"), ("synthetic", "synthetic"), ("exact; altered", "exact; altered"),
        ("exact, half of it", "exact, half of it"), ("exact; substitute", "substitute"),
        ("exact, rows in another order; cut", "exact, rows in another order; cut"),
        ("Partial", "partial"), ("stand-in for training text", "stand-in"),
        ("exact", ""), ("exact, row order differs from the hub", ""), ("original", ""),
        ("built", ""), ("own sentences", ""), ("demonstration", ""),
    ],
)  # fmt: skip
def test_a_status_is_good_by_name_or_a_mark(status: object, mark: str) -> None:
    assert mark_of(status) == mark


@pytest.mark.parametrize("status", ["", "modified", "synthetic"])
def test_data_of_unknown_status_enter_no_mean(tmp_path: Path, status: str) -> None:
    data = {"id": "x", "revision": "1", "source": "mirror", "status": status}
    axes = ("mteb_full", "llama-2-7b", VARIANT, "mean", "SciFact", 0.6448)
    made.add(tmp_path, *axes, dataset=data)
    results = load_results(tmp_path)
    assert set(compare(11, results)["verdict"]) == {"not run"}
    assert set(collect_evidence(results)["source"]) == {"paper"}


def test_no_committed_record_has_another_mark_than_it_had() -> None:
    statuses = load_results().scores["dataset_status"].unique()
    assert {status: mark_of(status) for status in statuses if mark_of(status)} == {
        "reconstructed": "reconstructed"
    }
