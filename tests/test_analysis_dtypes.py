"""The table of scores in another dtype, and the rule that a default must keep."""

from pathlib import Path

import pytest
import synthetic_records as made

from analysis.collect import Results, load_results
from analysis.render import to_markdown
from analysis.tables_dtypes import dtypes
from llm2vec.mixed import MIXED
from llm2vec.registry_verdicts import DTYPE_BAND
from llm2vec.results import NONE

MODEL = "smollm2-135m"


def add(root: Path, task: str, score: float, setting: str | None = None, **axes: str) -> None:
    values = {"experiment": "mteb_subset", "model": MODEL, "variant": "bi", "pooling": "mean"}
    values |= axes
    made.add(root, *values.values(), task, score, setting=setting)


def lines(table) -> list[list[str]]:
    return [[getattr(cell, "text", cell) for cell in row] for row in table.rows]


@pytest.fixture
def measured(tmp_path: Path) -> Results:
    """Two tasks in three dtypes: bfloat16 moves one of them, the mixed one none by too much."""
    for task, score in (("SICK-R", 0.5), ("STS17", 0.6)):
        add(tmp_path, task, score)
        add(tmp_path, task, score + 0.0020, MIXED)  # exactly the band: not more
    add(tmp_path, "SICK-R", 0.5015, "bfloat16")
    add(tmp_path, "STS17", 0.5965, "bfloat16")
    add(tmp_path, "STS17", 0.4, "bfloat16", pooling="eos")  # nothing to compare it with
    add(tmp_path, "STS17", 0.1, "published")
    return load_results(tmp_path)


def test_differences_are_in_points_and_the_largest_is_named(measured: Results) -> None:
    assert lines(dtypes(measured)) == [
        ["bfloat16", "SmolLM2-135M", "Bi", "Mean", "2", "-0.10", "-0.35", "STS17", "1 of 2"],
        [MIXED, "SmolLM2-135M", "Bi", "Mean", "2", "+0.20", "+0.20", "SICK-R", "0 of 2"],
    ]


def test_the_rule_stands_below_and_is_applied(measured: Results) -> None:
    text = to_markdown(dtypes(measured))
    assert f"no task moves by more than {DTYPE_BAND} points" in text
    assert (
        "bfloat16 on SmolLM2-135M: 1 of 2 scores moved by more; float32 stays the default" in text
    )
    assert (
        f"{MIXED} on SmolLM2-135M: 0 of 2 scores moved by more; {MIXED} may be the default" in text
    )


def test_the_default_is_the_models_own(tmp_path: Path) -> None:
    """A model that the paper runs in bfloat16 is compared with that."""
    add(tmp_path, "STS17", 0.5, model="mistral-7b")
    add(tmp_path, "STS17", 0.6, "float16", model="mistral-7b")
    assert "bfloat16 stays the default" in to_markdown(dtypes(load_results(tmp_path)))


def test_variants_and_poolings_come_in_the_registrys_order(tmp_path: Path) -> None:
    for variant, pooling in (("bi", "mean"), ("uni", "weighted_mean"), ("uni", "eos")):
        for setting in (None, "bfloat16"):
            add(tmp_path, "STS17", 0.5, setting, variant=variant, pooling=pooling)
    for setting in (None, "bfloat16"):
        made.add(tmp_path, "mteb_subset", "minilm-l6", "encoder", NONE, "STS17", 0.5,
                 setting=setting)  # fmt: skip
    table = dtypes(load_results(tmp_path))
    assert [row[2:4] for row in lines(table)] == [
        ["Uni", "EOS"], ["Uni", "W. mean"], ["Bi", "Mean"], ["Encoder", "own"],
    ]  # fmt: skip
    assert list(table.data.columns[-4:]) == ["own_dtype", "score", "own", "difference"]
