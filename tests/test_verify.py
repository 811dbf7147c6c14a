"""Records measured again: a good one passes to the last bit, an altered one is named.

The tiny decoder and a mirror of a few rows stand in for models and data; the slow test makes
committed records again.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_records import make_record
from tiny_mirror import StubEncoder, add_task, few_resamples
from typer.testing import CliRunner

from llm2vec import evaluation, leakage, provenance, verify
from llm2vec.analyses import measure_leakage
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import DataError, SettingError
from llm2vec.integrity import faults
from llm2vec.paths import ROOT
from llm2vec.registry import DTYPES, get_model, get_task, get_variant
from llm2vec.registry_verdicts import RERUN_TOLERANCE, rerun_tolerance
from llm2vec.results import NONE, Record, hash_of, read_record

# A draw of so few rows may well be constant.
pytestmark = pytest.mark.filterwarnings("ignore:An input array is constant")
CLEAN = {"commit": "0" * 40, "dirty": False}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """These records are made by a test, not by a script, perhaps from a changed tree."""
    monkeypatch.setattr("llm2vec.provenance._tree", lambda: provenance._Tree("0" * 40))
    monkeypatch.setattr(
        "llm2vec.provenance._command", lambda: "python experiments/06_pooling_leakage.py"
    )


@pytest.fixture
def results(tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leakage records of a tiny causal decoder, by the function that the experiment calls."""

    def load(model: str, variant: str, **_: Any) -> LLM2Vec:
        kind = get_variant(variant)
        return LLM2Vec(
            tiny_llama.model.model, tiny_llama.tokenizer, model=get_model(model), variant=kind
        )

    own = leakage.TripleSet(leakage.load_triples().triples[:24], "0" * 64)
    monkeypatch.setattr(leakage, "load_triples", lambda _=None: own)
    monkeypatch.setattr("llm2vec.encoder.load_encoder", load)
    for variant in ("uni", "echo"):
        measure_leakage("smollm2-135m", variant, tmp_path)
    return tmp_path


def place(root: Path, variant: str = "echo") -> Path:
    return root / f"raw/pooling_leakage/smollm2-135m/{variant}/none/triples.json"


def alter(path: Path, **changes: Any) -> dict[str, Any]:
    """Change values of a record, dotted names reaching inside; the file stays a valid record."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        inner = values
        for key in outer:
            inner = inner[key]
        inner[last] = value(inner[last]) if callable(value) else value
    values["hyperparameters_hash"] = hash_of(values["hyperparameters"])
    path.write_text(json.dumps(values))
    return values


@pytest.fixture
def agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that were altered wherever they stand: nothing is seen without measuring again."""
    monkeypatch.setattr(verify, "faults", lambda _: [])


def verified(root: Path, *options: str) -> tuple[int, list[str]]:
    """Exit code and lines of the command."""
    app = verify.typer.Typer()
    app.command()(verify.main)
    done = CliRunner().invoke(app, [f"--results={root}", *options], catch_exceptions=False)
    return done.exit_code, [line for line in done.stdout.splitlines() if line]


# --------------------------------------------------------------------------- made again
def test_an_altered_score_is_seen_without_measuring(results: Path) -> None:
    alter(place(results), score=lambda x: x - 1e-3)
    code, lines = verified(results, "--only=echo")
    assert code == 1 and lines[-1] == "none measured"
    assert all(line.startswith("invalid") for line in lines[:-1])
    assert any("but triples.parquet gives" in line for line in lines)


def test_good_records_pass(results: Path) -> None:
    code, lines = verified(results, "--seed=1")
    assert code == 0
    scores = {variant: read_record(place(results, variant)).score for variant in ("uni", "echo")}
    for variant, score in scores.items():
        (line,) = (x for x in lines if f"/{variant}/" in x and x.startswith("equal"))
        assert line.endswith(f"{score!r}")
    assert lines[-1] == "2 equal"


@pytest.mark.usefixtures("agreeing")
def test_an_altered_score_is_named_with_both_values(results: Path) -> None:
    """By less than any table shows: on the same machine nothing may move."""
    path = place(results)
    before = read_record(path).score
    alter(path, score=before - 1e-9)
    code, lines = verified(results, "--seed=1")
    assert code == 1
    (line,) = (line for line in lines if line.startswith("differs"))
    assert str(path.relative_to(results)) in line
    assert f"{before - 1e-9!r}, now {before!r} (+1e-09)" in line
    assert line.endswith("same machine, versions and dtype")
    assert any("/uni/" in line and line.startswith("equal") for line in lines)


@pytest.mark.usefixtures("agreeing")
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"scores__gap": lambda x: x + 1e-7}, "scores.gap was "),
        ({"interval": lambda x: [x[0], x[1] + 1e-6]}, "interval[1] was "),
        ({"n": 23}, "n was 23 and is 24"),
    ],
)
def test_every_number_of_a_record_counts(results: Path, changes: dict[str, Any], name: str) -> None:
    alter(place(results), **changes)
    code, lines = verified(results, "--only=echo")
    assert code == 1 and name in lines[0]


@pytest.mark.usefixtures("agreeing")
def test_elsewhere_a_score_may_move_within_the_tolerance(results: Path) -> None:
    path = place(results)
    score = read_record(path).score
    elsewhere = {"provenance__processor": "Another 9000", "provenance__versions__torch": "1.0"}
    alter(path, score=score - 1e-3, **elsewhere)
    code, lines = verified(results, "--only=echo")
    assert code == 0
    assert lines[0].startswith("close") and "(+0.001), within 0.0416667" in lines[0]
    assert "processor (Another 9000 -> " in lines[0] and "torch (1.0 -> " in lines[0]


@pytest.mark.usefixtures("agreeing")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"score": lambda x: x - 0.06}, "score: "),
        ({"interval": lambda x: [x[0] - 0.06, x[1]]}, "interval[0]: "),
        ({"scores__gap_interval": lambda x: x[:1]}, "scores.gap_interval: "),
        ({"n": 23}, "n: 23 -> 24"),  # one item less is another measurement
        ({"scores__cosine_positive": 0.0}, "scores.cosine_positive: 0.0 -> "),
        ({"scores__ties": 7}, "scores.ties: 7 -> "),
    ],
)
def test_what_no_rounding_explains_differs_elsewhere_too(
    results: Path, change: dict[str, Any], named: str
) -> None:
    alter(place(results), provenance__versions__torch="1.0", **change)
    code, lines = verified(results, "--only=echo")
    assert code == 1
    assert lines[0].startswith("differs") and "more than 0.04" in lines[0]
    assert f" ({named}" in lines[0]
    assert "torch (1.0 -> " in lines[0]


@pytest.mark.usefixtures("agreeing")
def test_details_may_move_further_than_the_score(results: Path) -> None:
    elsewhere = {"provenance__versions__torch": "1.0"}
    alter(place(results), scores__cosine_positive=lambda x: x - 0.1, **elsewhere)
    assert verified(results, "--only=echo")[0] == 0


@pytest.mark.parametrize(
    ("dtype", "metric", "n", "expected"),
    [
        ("float32", "cosine_spearman", 10, 0.002),
        ("bfloat16", "cosine", 20, 0.02),
        ("float32", "accuracy", 50, 0.02),
        ("float32", "ndcg_at_10", 5000, 0.002),
        ("float32", "v_measure", 8, 0.03),
    ],
)
def test_tolerance_by_what_may_flip(dtype: str, metric: str, n: int, expected: float) -> None:
    assert rerun_tolerance(dtype, metric, n) == pytest.approx(expected)


def test_every_dtype_has_a_tolerance() -> None:
    assert set(RERUN_TOLERANCE) == set(DTYPES)


@pytest.mark.usefixtures("agreeing")
def test_what_an_old_record_does_not_say_may_be_another_machine(results: Path) -> None:
    path = place(results)
    values = alter(path, score=lambda x: x - 1e-3)
    del values["provenance"]["threads"]
    path.write_text(json.dumps(values))
    code, lines = verified(results, "--only=echo")
    assert code == 0 and "threads (not recorded -> " in lines[0]


@pytest.mark.usefixtures("agreeing")
def test_other_code_of_the_package_may_round_otherwise(results: Path) -> None:
    path = place(results)
    alter(path, score=lambda x: x - 1e-3, provenance__commit="4" * 40)  # git knows no such commit
    code, lines = verified(results, "--only=echo")
    assert code == 0 and "code (444444444 -> " in lines[0]


def test_other_settings_or_adapters_are_no_rounding(results: Path) -> None:
    path = place(results)
    alter(path, hyperparameters__tie=1e-4, provenance__processor="Another 9000")
    code, lines = verified(results, "--only=echo")
    assert code == 1
    assert lines[0].startswith("differs") and "tie: 0.0001 -> 1e-05" in lines[0]


def test_what_is_not_at_hand_is_said_and_proves_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: Any, **__: Any) -> None:
        raise DataError("the data of Nowhere are not to be had")

    monkeypatch.setattr(verify, "measure_leakage", nowhere)
    code, lines = verified(results, "--number=1")
    assert code == 1
    assert lines[0].startswith("not run") and "Nowhere" in lines[0]
    monkeypatch.setattr(verify, "measure_leakage", lambda *_, **__: _raise(SettingError("broken")))
    code, lines = verified(results, "--number=1")
    assert code == 1 and lines[0].startswith("differs") and "broken" in lines[0]


def _raise(error: Exception) -> None:
    raise error


def test_poolings_of_one_pass_are_made_again_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shares a batch decides the rounding; vectors of the first run are not found again."""
    loaded: list[StubEncoder] = []

    def load(model: str, variant: str, **_: Any) -> StubEncoder:
        loaded.append(StubEncoder(model, variant))
        return loaded[-1]

    monkeypatch.setattr("llm2vec.encoder.load_encoder", load)
    monkeypatch.setattr("llm2vec.mteb_tasks.bootstrap_interval", few_resamples)
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / "cache"))
    add_task(tmp_path / "mirror", get_task("STS17"))
    for poolings in (("mean", "weighted_mean"), ("eos",)):
        # Two commands, in whatever second they begin.
        command = f"python experiments/04_mteb_subset.py --pooling {poolings[0]}"
        monkeypatch.setattr("llm2vec.provenance._command", lambda said=command: said)
        run = evaluation.plan("smollm2-135m", "uni", "short6", tmp_path, task="STS17")
        evaluation.execute(replace(run, poolings=poolings))
    made = loaded.copy()
    assert verified(tmp_path, "--only=/mean/", "--seed=0")[0] == 0
    assert verified(tmp_path, "--only=/eos/", "--seed=0")[0] == 0
    again = [encoder.calls[0][1] for encoder in loaded[len(made) :]]
    assert again == [("mean", "weighted_mean"), ("eos",)]


# --------------------------------------------------------------------------- which
def test_the_draw_is_random_repeatable_and_cheap() -> None:
    records = {
        Path(str(i)): make_record(
            "offline_suite", "smollm2-135m", "uni", "mean", f"T{i}", 0.5,
            cost={"tokens": 1000 * i},
        )
        for i in range(20)
    }  # fmt: skip
    one, other = (set(verify.draw(records, 5, seed, 10_000)) for seed in (1, 2))
    assert one == set(verify.draw(records, 5, 1, 10_000)) != other
    assert len(one) == 5 and all(int(path.name) <= 10 for path in one | other)
    assert len(verify.draw(records, 50, 1, 10_000)) == 11
    with pytest.raises(SettingError, match=r"none of 20 records .* --max-tokens"):
        verify.draw({p: replace(r, dataset=r.dataset | {"source": "file"})
                     for p, r in records.items()}, 5, 1, 1e9)  # fmt: skip


def test_training_counts_and_is_not_repeated() -> None:
    trained = make_record(
        "ablations", "smollm2-135m", "bi-mntp", NONE, "wikitext", 0.2, setting="mntp-lr-0.001-25",
        hyperparameters={"training": {"steps": 25}}, scores={"training": {"tokens": 12_800}},
    )  # fmt: skip
    assert verify.tokens_of(trained) == 13_800
    assert not verify.can_be_rerun(trained)
    assert verify.can_be_rerun(replace(trained, hyperparameters={"training": {}}, scores={}))


def test_a_part_of_a_path_that_no_record_has(results: Path) -> None:
    with pytest.raises(SettingError, match=r"no record of 2 in .* has 'bi-mntp' in its path"):
        verify.main(number=1, only="bi-mntp", seed=0, max_tokens=1, results=results)


# --------------------------------------------------------------------------- integrity
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"provenance__dirty": True}, "changes that no commit holds"),
        ({"provenance__commit": "unknown"}, "at commit 'unknown'"),
        ({"provenance__command": "python -c 'print(1)'"}, "names no script"),
        ({"provenance__command": "python experiments/99_nothing.py"}, "names no script"),
        ({"adapters": ["a" * 64]}, "names 1 adapters, its variant has 0"),
        ({"score": 3}, "'score'"),
    ],
)
def test_a_record_that_is_not_what_it_says_is_named(
    results: Path, damage: dict[str, Any], why: str
) -> None:
    path = place(results)
    assert faults(path) == []
    alter(path, **damage)
    (line,) = faults(path)
    assert str(path) in line and why in line
    code, lines = verified(results, "--seed=1")
    assert code == 1
    assert lines[0].startswith("invalid") and why in lines[0]
    assert lines[-1] == "1 equal"


def test_hyperparameters_that_were_edited_are_named(results: Path) -> None:
    path = place(results)
    values = json.loads(path.read_text())
    values["hyperparameters"]["tie"] = 0.5
    path.write_text(json.dumps(values))
    assert "'hyperparameters_hash' does not belong" in faults(path)[0]


def test_missing_arrays_are_named(results: Path) -> None:
    path = place(results)
    path.with_suffix(".parquet").unlink()
    assert "triples.parquet is missing" in faults(path)[0]


# --------------------------------------------------------------------------- the real thing
@pytest.mark.slow
def test_a_committed_record_is_made_again() -> None:
    """MiniLM on the triples: the numbers of the repository are those of its code."""
    path = ROOT / "results/raw/pooling_leakage/minilm-l6/encoder/none/triples.json"
    record: Record = read_record(path)
    (outcome,) = verify.check({path: record}, {path: record})
    assert outcome.status in ("equal", "close"), outcome.text
