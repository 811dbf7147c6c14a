"""Proof of the harness: a public model gets its published scores, to four decimals.

all-MiniLM-L6-v2 runs through our ``encode``, our tasks from the mirror and mteb's scoring. Any
slip in tokenizing, truncating, pooling, normalizing, prompting, ordering or reading data moves a
score by more than that. MassiveIntent has a score of its own here: the rows of the mirror stand in
another order than those of the hub, so mteb draws other training examples.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic_records import PROVENANCE, add

from analysis.build import make_table
from analysis.collect import load_results
from analysis.render import NOT_RUN, to_markdown
from llm2vec.errors import AssetError, RecordError
from llm2vec.registry import get_task

LEFT_OUT = {"MassiveIntentClassification"}
PUBLISHED = {
    "STSBenchmark": 0.82032,
    "EmotionClassification": 0.40830,
    "SciFact": 0.64508,
    "Banking77Classification": 0.80042,
    "SICK-R": 0.77582,
    "STS17": 0.87588,
}
# Not the published score, but the one of the mirror's row order.
OURS = PUBLISHED | {"MassiveIntentClassification": 0.68093}


def test_the_published_scores_are_those_of_the_table(repo_root: Path) -> None:
    with open(repo_root / "results" / "paper" / "published_minilm.csv", newline="") as handle:
        rows = {row["task"]: row for row in csv.DictReader(handle)}
    assert set(rows) - LEFT_OUT == set(PUBLISHED)
    for name, score in PUBLISHED.items():
        row, task = rows[name], get_task(name)
        assert float(row["score"]) == score
        assert (row["main_metric"], row["split"]) == (task.metric, task.split)
        assert row["subset"] == task.subset


# --------------------------------------------------------------------------- the tables
def add_measured(root: Path, name: str, score: float, status: str = "exact") -> None:
    data = {"id": "x", "revision": "1", "source": "mirror", "status": status}
    add(root, "mteb_subset", "minilm-l6", "encoder", "none", name, score, dataset=data)


def cells_of(root: Path, table: str) -> list[list[str]]:
    text = to_markdown(make_table(table, load_results(root)))
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_judges_each_score(tmp_path: Path) -> None:
    add_measured(tmp_path, "STSBenchmark", 0.82034)
    add_measured(tmp_path, "EmotionClassification", 0.40830, "reconstructed")
    add_measured(tmp_path, "MassiveIntentClassification", 0.68093, "exact, row order differs")
    add_measured(tmp_path, "SciFact", 0.64)
    rows = {row[0]: row[3:] for row in cells_of(tmp_path, "harness")}
    assert rows["STSBenchmark"] == ["0.82034", "+0.00002", "equal", ""]
    assert rows["EmotionClassification"][0] == "0.40830 (reconstructed)"
    assert rows["EmotionClassification"][3] == "no proof: its data are reconstructed"
    assert rows["MassiveIntentClassification"][2] == "differs"
    assert rows["MassiveIntentClassification"][3] == ""  # its orders were not run
    assert rows["SciFact"][2:] == ["differs", ""]
    assert rows["Banking77Classification"][0] == NOT_RUN


def test_a_cause_is_named_only_where_the_orders_bear_it_out(tmp_path: Path) -> None:
    """A constant would explain any score; so a wrong one stays unexplained, or half so."""
    root, task = tmp_path / "results", "MassiveIntentClassification"
    for measured, scores, said in (
        (0.68093, [0.66, 0.67, 0.69], "other examples are drawn to train on"),
        (0.68093, [0.66, 0.67, 0.68], "may be a part of the cause alone"),
        (0.01, [0.66, 0.67, 0.69], "may be a part of the cause alone"),
        (0.68093, [0.68, 0.69, 0.70], ""),
    ):
        shutil.rmtree(root, ignore_errors=True)
        add_measured(root, task, measured, "exact, row order differs")
        write_orders(tmp_path, scores)
        (row,) = (row for row in cells_of(root, "harness") if row[0] == task)
        assert row[5] == "differs" and row[6].endswith(said)
        assert bool(row[6]) == bool(said)


def write_orders(folder: Path, scores: list[Any]) -> None:
    file = folder / "benchmarks" / "results" / "row_order.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    made = {"task": "MassiveIntentClassification", "as_it_is": 0.68, "provenance": PROVENANCE}
    file.write_text(json.dumps(made | {"rows": scores}))


def test_the_spread_over_row_orders_is_shown(tmp_path: Path) -> None:
    root = tmp_path / "results"
    root.mkdir()
    assert cells_of(root, "row_order")[0][0] == "not run"
    write_orders(tmp_path, [0.66, 0.67, 0.69])
    assert cells_of(root, "row_order") == [[
        "MassiveIntentClassification", "3", "0.6733", "0.0153", "0.6600 to 0.6900",
        "0.6694 (above 33 %)", "0.6800 (above 67 %)",
    ]]  # fmt: skip
    write_orders(tmp_path, ["a"])
    with pytest.raises(RecordError, match=r"row_order\.json: not what"):
        cells_of(root, "row_order")


# --------------------------------------------------------------------------- the proof
@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
@pytest.mark.usefixtures("mirror_env")
def test_minilm_gets_its_published_score(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm2vec.encoder import load_encoder
    from llm2vec.mteb_tasks import evaluate_task
    from llm2vec.vectors import Vectors

    try:
        encoder = load_encoder("minilm-l6", "encoder", device="cpu")
    except AssetError as error:
        pytest.skip(str(error))
    encoded, encode, passes = [], encoder.encode_poolings, []

    def count(pairs: list[tuple[str, str]], *arguments: Any) -> Any:
        encoded.extend(pairs)
        return encode(pairs, *arguments)

    monkeypatch.setattr(encoder, "encode_poolings", count)
    encoder.backbone.register_forward_hook(lambda *_: passes.append(1))
    vectors = Vectors(encoder, ("none",), tmp_path / "vectors")
    (done,), source = evaluate_task(vectors, get_task(name))

    assert done.score == pytest.approx(OURS[name], abs=0.00005)
    low, high = done.interval.low, done.interval.high
    assert low < done.score < high
    assert source.status.startswith("exact")
    # No constant can stand for the model: every text went through it, and went through once.
    assert len(encoded) == len(set(encoded)) > 300
    assert len(passes) > 5
    assert done.tokens == encoder.counter.tokens > 5 * len(encoded)
