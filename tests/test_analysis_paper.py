"""The paper's printed numbers agree with each other where they must, and verdicts use them."""

from pathlib import Path

import pandas as pd
import pytest
import synthetic_records as made

from analysis import tables_own, tables_verdicts
from analysis.collect import load_results
from analysis.means import CATEGORIES, columns_of_table1, tasks_by_category
from analysis.paper import (
    TABLES,
    VERSION,
    compare,
    cost_ratio,
    our_names,
    printed,
    reruns,
    subset_noise,
    verdict,
    verdict_of_harness,
)
from llm2vec.errors import SettingError
from llm2vec.paths import results_dir
from llm2vec.registry import MODELS, POOLINGS, SUITES, TASKS, VARIANTS
from llm2vec.registry_verdicts import VERDICT_BANDS
from llm2vec.results import NONE

PAPER = results_dir() / "paper"
ROUNDING = 0.0075  # two numbers with two decimals, and a little for a mean of means


def category_scores(number: int, variant: str) -> pd.Series:
    rows = printed(number, PAPER)
    rows = rows[(rows["variant"] == variant) & rows["model"].isin(MODELS)]
    return rows.set_index(["model", "category"])["score"]


@pytest.mark.parametrize("number", TABLES)
def test_every_row_says_its_table_and_version(number: int) -> None:
    rows = printed(number, PAPER)
    assert set(rows["table"]) == {f"Table {number}"}
    assert set(rows["paper"]) == {VERSION}


@pytest.mark.parametrize(("number", "rows"), [(1, 160), (2, 136), (4, 51), (5, 54), (11, 171)])
def test_no_cell_is_missing_or_twice(number: int, rows: int) -> None:
    table = printed(number, PAPER)
    axes = [c for c in ("model", "variant", "pooling", "category", "task") if c in table]
    assert len(table) == rows
    assert not table.duplicated(axes).any()
    assert table["score"].between(0, 100).all()


@pytest.mark.parametrize(("per_task", "table", "variant"), [(11, 1, "bi-mntp-simcse"),
                                                            (12, 2, "bi-mntp")])  # fmt: skip
def test_category_means_of_the_per_task_tables(per_task: int, table: int, variant: str) -> None:
    scores = printed(per_task, PAPER).pivot(index="task", columns="model", values="score")
    means = category_scores(table, variant)
    compared = 0
    for model in scores:
        for category, tasks in columns_of_table1().items():
            mean = scores.loc[list(tasks), model].mean()
            assert mean == pytest.approx(means[model, category], abs=ROUNDING), (model, category)
            compared += 1
        assert scores.loc["Average", model] == means[model, "Average"]
    assert compared == 3 * 8


@pytest.mark.parametrize("number", [1, 2])
def test_averages_are_the_weighted_categories(number: int) -> None:
    weights = {c: len(tasks) for c, tasks in tasks_by_category(SUITES["full"]).items()}
    assert list(weights.values()) == [15, 4, 11, 3, 12, 10, 1]
    rows = printed(number, PAPER)
    for axes, block in rows.groupby(["model", "variant", "pooling"]):
        scores = block.set_index("category")["score"]
        mean = sum(scores[c] * weights[c] for c in CATEGORIES) / 56
        one_decimal = axes[0].startswith("gritlm")
        assert mean == pytest.approx(scores["Average"], abs=0.05 if one_decimal else ROUNDING)


def test_known_disagreement_of_tables_5_and_11() -> None:
    """The list of results/paper/README.md: Table 5 was another run."""
    scores = printed(11, PAPER).pivot(index="task", columns="model", values="score")
    means = scores.loc[list(SUITES["subset"])].mean()
    five = printed(5, PAPER)
    five = five[(five["variant"] == "bi-mntp-simcse") & (five["pooling"] == "mean")]
    five = five.set_index("model")["score"]
    differences = {model: round(means[model] - five[model], 2) for model in five.index}
    assert differences == {"s-llama-1.3b": -0.03, "llama-2-7b": -0.09, "mistral-7b": -0.07}
    text = (PAPER / "README.md").read_text(encoding="utf-8")
    for model, difference in differences.items():
        row = f"| {MODELS[model].display} | {five[model]:.2f} | {means[model]:.2f} |"
        assert f"{row} {difference:.2f} |" in text


def test_percentages_of_the_text_follow_from_the_tables() -> None:
    five = printed(5, PAPER).set_index(["model", "variant", "pooling"])["score"]
    gains = {}
    for model in ("s-llama-1.3b", "llama-2-7b", "mistral-7b"):
        causal = max(five[model, "uni", pooling] for pooling in ("eos", "mean", "weighted_mean"))
        gains[model] = round(100 * (five[model, "bi-mntp-simcse", "mean"] / causal - 1), 1)
    assert gains == {"s-llama-1.3b": 49.8, "llama-2-7b": 23.2, "mistral-7b": 37.5}
    one = category_scores(1, "bi-mntp")["mistral-7b", "Average"]
    assert round(100 * (one / category_scores(1, "uni")["mistral-7b", "Average"] - 1), 1) == 16.4


def test_subset_of_table_3_is_the_registrys() -> None:
    rows = printed(3, PAPER)
    assert set(rows["task"]) == set(SUITES["subset"])
    assert all(TASKS[row.task].type == row.category for row in rows.itertuples())


def test_reruns_quote_table_11_and_justify_the_band() -> None:
    rows = pd.read_csv(PAPER / "reruns.csv")
    for number in (11, 12):
        table = printed(number, PAPER).set_index(["model", "task"])["score"]
        own = rows[rows["table"] == f"Table {number}"]
        assert len(own) == 7
        for row in own.itertuples():
            assert table[row.model, row.task] == row.printed
    median = (rows["rerun"] - rows["printed"]).abs().median()
    assert VERDICT_BANDS["task"].close <= median < VERDICT_BANDS["task"].close + 1


def test_paper_names_lead_to_registry_names() -> None:
    for number in (1, 5):
        for row in printed(number, PAPER).itertuples():
            model, variant, _ = our_names(row.model, row.variant, row.pooling)
            assert model in MODELS
            assert variant in VARIANTS
    assert our_names("bert-base", "encoder-simcse", "unstated") == (
        "bert-base-simcse", "encoder", NONE,
    )  # fmt: skip
    assert our_names("mistral-7b", "echo", "unstated")[2] == "mean"


# --------------------------------------------------------------------------- verdicts
@pytest.mark.parametrize(
    ("kind", "difference", "expected"),
    [
        ("word", 0.5, "reproduced"), ("word", -0.5, "reproduced"), ("word", 0.51, "close"),
        ("word", -1.5, "close"), ("word", 1.51, "differs"),
        ("task", 2.0, "close"), ("task", 2.01, "differs"),
        ("mean", 0.3, "reproduced"), ("mean", 0.31, "close"), ("mean", 1.01, "differs"),
    ],
)  # fmt: skip
def test_verdict_at_the_edges_of_its_band(kind: str, difference: float, expected: str) -> None:
    assert verdict(40.0, 40.0 + difference, kind) == expected
    assert verdict(40.0, None, kind) == "not run"


def test_harness_verdict_is_four_decimals() -> None:
    assert verdict_of_harness(0.00004) == "equal"
    assert verdict_of_harness(-0.00006) == "differs"
    assert verdict_of_harness(None) == "not run"


def test_unknown_and_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Table 7"):
        printed(7, PAPER)
    with pytest.raises(SettingError, match=r"table4\.csv"):
        printed(4, tmp_path)
    with pytest.raises(SettingError, match="Table 2"):
        compare(2, load_results(tmp_path))


# --------------------------------------------------------------------------- the join
def word_row(root: Path, variant: str = "uni", task: str = "ner") -> pd.Series:
    rows = compare(4, load_results(root)).set_index(["model", "variant", "column"])
    return rows.loc[("s-llama-1.3b", variant, task)]


def test_a_reproduced_word_score_meets_its_printed_one(tmp_path: Path) -> None:
    made.add(tmp_path, "word_probing", "s-llama-1.3b", "uni", NONE, "ner", 0.9629)
    row = word_row(tmp_path)
    assert (row["paper"], row["difference"], row["verdict"]) == (96.09, 0.2, "reproduced")
    assert word_row(tmp_path, "bi")["verdict"] == "not run"


def test_departures_and_the_demonstration_corpus_stay_out(tmp_path: Path) -> None:
    made.add(tmp_path, "word_probing", "s-llama-1.3b", "uni", NONE, "ner", 0.96, setting="previous")
    made.add(tmp_path, "word_probing", "s-llama-1.3b", "uni", NONE, "mini-ner", 0.96)
    assert word_row(tmp_path)["verdict"] == "not run"


def test_a_mean_with_a_missing_part_stays_empty(tmp_path: Path) -> None:
    tasks = SUITES["subset"]
    axes = ("mteb_subset", "s-llama-1.3b", "bi", "mean")
    for task in tasks[:-1]:
        made.add(tmp_path, *axes, task, 0.3026)
    key = ("s-llama-1.3b", "bi", "mean")

    def row() -> pd.Series:
        rows = compare(5, load_results(tmp_path))
        return rows.set_index(["model", "variant", "pooling"]).loc[key]

    assert (row()["verdict"], row()["done"], row()["total"]) == ("not run", 14, 15)
    assert pd.isna(row()["reproduced"])
    made.add(tmp_path, *axes, tasks[-1], 0.3026)
    assert (row()["verdict"], row()["done"]) == ("reproduced", 15)


@pytest.mark.parametrize("status", ["reconstructed", "exact; substitute", "partial", "unverified"])
def test_marked_data_never_reaches_a_paper_column(tmp_path: Path, status: str) -> None:
    data = {"id": "x", "revision": "1", "source": "mirror", "status": status}
    axes = ("mteb_full", "llama-2-7b", "bi-mntp-simcse", "mean", "SciFact", 0.6448)

    def scifact() -> str:
        rows = compare(11, load_results(tmp_path)).set_index(["model", "column"])
        return rows.loc[("llama-2-7b", "SciFact"), "verdict"]

    made.add(tmp_path, *axes, dataset=data)
    assert scifact() == "not run"
    made.add(tmp_path, *axes, dataset=data | {"status": "exact, row order differs from the hub"})
    assert scifact() == "reproduced"


def test_a_verdict_knows_mtebs_rerun(tmp_path: Path) -> None:
    task = "MassiveIntentClassification"
    made.add(tmp_path, "mteb_full", "mistral-7b", "bi-mntp-simcse", "mean", task, 0.6898)
    rows = compare(11, load_results(tmp_path)).set_index(["model", "column"])
    row = rows.loc[("mistral-7b", task)]
    assert row["verdict"] == "differs"
    assert row["note"] == "with mteb's re-run of 1 of 1 tasks: 68.98 (reproduced)"
    assert reruns(PAPER)["mistral-7b", task] == pytest.approx(-7.6655)
    assert rows.loc[("llama-2-7b", task), "note"] == ""


def test_small_models_have_no_paper_column(tmp_path: Path) -> None:
    made.add_words(tmp_path, "smollm2-135m")
    for number in (1, 4, 5, 11):
        rows = compare(number, load_results(tmp_path))
        assert "smollm2-135m" not in set(rows["model"])
        assert set(rows["verdict"]) == {"not run"}


def test_cost_ratio_is_over_common_tasks(tmp_path: Path) -> None:
    def run(variant: str, task: str, seconds: float, tokens: float) -> None:
        made.add(tmp_path, "mteb_full", "mistral-7b", variant, "mean", task, 0.5,
                 cost={"seconds": seconds, "tokens": tokens})  # fmt: skip

    run("echo", "SciFact", 30, 200)
    run("echo", "STS17", 10, 20)
    run("bi-mntp-simcse", "SciFact", 10, 100)
    full = ("mteb_full",)

    def ratio(model: str, experiments=full, tasks=SUITES["full"]) -> tuple | None:
        return cost_ratio(load_results(tmp_path), model, experiments, tasks)

    assert ratio("mistral-7b") == (3.0, 2.0, 1)
    assert ratio("llama-2-7b") is None
    assert ratio("mistral-7b", ("mteb_subset",)) is None
    assert ratio("mistral-7b", tasks=["STS17"]) is None


def test_a_second_pass_for_eos_is_no_cost_of_the_mean(tmp_path: Path) -> None:
    """Echo's eos shares its one pass, LLM2Vec's has one of its own: 2 passes for 3 poolings."""
    for variant, seconds, tokens in (("echo", 21.0, 200), ("bi-mntp-simcse", 21.0, 202)):
        cost = {"seconds": seconds, "encoding_seconds": 20.0, "tokens": tokens,
                "poolings_sharing": 3}  # fmt: skip
        made.add(tmp_path, "offline_suite", "smollm2-135m", variant, "mean",
                 SUITES["offline"][0], 0.5, cost=cost)  # fmt: skip
    results = load_results(tmp_path)
    found = cost_ratio(results, "smollm2-135m", ("offline_suite",), SUITES["offline"])
    assert found == pytest.approx((21 / 11, 200 / 101, 1))
    (row,) = tables_own.echo(results).rows
    assert row == ["SmolLM2-135M", "offline suite", "1", "50.00", "50.00", "about 2.0", "1.91"]


def test_tokens_of_the_mean_are_exact_where_a_causal_run_tells_eos_apart(tmp_path: Path) -> None:
    """Ten texts of 100 tokens: EOS adds 10 to a pass, and no half of 210 is 100."""
    task = SUITES["offline"][0]

    def run(variant: str, sharing: int, tokens: int, *poolings: str) -> None:
        for pooling in poolings:
            made.add(tmp_path, "offline_suite", "smollm2-135m", variant, pooling, task, 0.5, cost={
                "seconds": 21.0, "encoding_seconds": 21.0, "tokens": tokens,
                "poolings_sharing": sharing,
            })  # fmt: skip

    def ratio() -> tuple[str, str]:
        return tuple(tables_own.echo(load_results(tmp_path)).rows[0][-2:])

    run("echo", 1, 200, "mean")
    run("bi-mntp-simcse", 3, 210, *POOLINGS)
    assert ratio() == ("about 1.9", "2.00")
    run("uni", 3, 110, *POOLINGS)
    assert ratio() == ("2.00", "2.10")
    # without eos, two poolings are one pass
    run("bi-mntp-simcse", 2, 100, "mean", "weighted_mean")
    assert ratio() == ("2.00", "1.00")


def test_the_bands_stand_on_noise_that_is_measured(tmp_path: Path) -> None:
    empty = tables_verdicts.bands(load_results(tmp_path)).rows
    assert empty[0][4] == "not run"
    for task, std in (("ner", 0.001), ("pos", 0.002), ("chunking", 0.004)):
        made.add(tmp_path, "word_probing", "smollm2-135m", "uni", NONE, task, 0.9,
                 scores={"accuracy": {"mean": 0.9, "std": std}})  # fmt: skip
    word, task, mean = (row[4] for row in tables_verdicts.bands(load_results(tmp_path)).rows)
    assert "0.20 in the median, 0.40 at most, of 3 records" in word
    assert "14 scores moved, by 2.2 in the median" in task
    assert "0.09 apart at most, of 3 means" in mean
    assert max(map(abs, subset_noise(PAPER).values())) < VERDICT_BANDS["mean"].reproduced


def test_the_noise_of_committed_seeds_is_within_the_band() -> None:
    """What is reproduced must not be a matter of the seed."""
    largest = tables_verdicts.bands(load_results()).data.set_index("kind")["noise_largest"]
    assert 0 < largest["word"] <= VERDICT_BANDS["word"].reproduced
