"""The committed evidence: clean commits, scripts that exist, adapters that are the shipped ones."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from llm2vec import integrity
from llm2vec.adapters import ADAPTER_WEIGHTS
from llm2vec.integrity import faults, origin_faults
from llm2vec.results import sha256_file

RESULTS = ROOT / "results"
RECORDS = sorted((RESULTS / "raw").rglob("*.json"))
BENCHMARKS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
LOG = ROOT / "docs" / "reproduction-log.md"
ADAPTERS = sorted((RESULTS / "adapters").glob("*/*/provenance.json"))


@pytest.fixture(scope="module", autouse=True)
def shipped_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What somebody trains in this checkout is not what the records were made with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path_factory.mktemp("none")))
        integrity._hashes.cache_clear()
        yield
    integrity._hashes.cache_clear()


def test_there_is_evidence() -> None:
    assert len(RECORDS) > 400 and len(ADAPTERS) >= 4


def test_every_record_is_what_it_says() -> None:
    """Valid, from a clean commit, by a script that is here, with the shipped adapters."""
    assert [line for path in RECORDS for line in faults(path)] == []


SUITE, WORDS = "smollm2-135m/bi-mntp", "word_probing/smollm2-135m/bi/none/pos"
LEAKAGE, LAYERS = "pooling_leakage/smollm2-135m/bi", "layer_similarity/smollm2-135m/bi"
PAIRS = "attention_sink/smollm2-135m/bi/mean/STSBenchmark@instruction-without-first-1"
MASKED = "ablations/smollm2-135m/bi/none/wikitext@mntp-lr-untrained"
RATE = "ablations/smollm2-135m/bi-simcse/mean/STSBenchmark@simcse-lr-0.0001-20"
AMENDED = "ablations/smollm2-135m/bi-mntp-simcse/mean/STSBenchmark@simcse-after-mntp-lr-0.0001-20"


def raise_by(amount: float) -> Callable[[float], float]:
    return lambda before: before + amount


@pytest.mark.parametrize(
    ("name", "field", "value", "why"),
    [
        (f"mteb_subset/{SUITE}/mean/SICK-R", "score", raise_by(1e-6), "scores.main_score is"),
        (f"mteb_subset/{SUITE}/mean/SciFact", "score", raise_by(1e-4), "scores.bootstrap.score is"),
        (f"offline_suite/{SUITE}/eos/OfflineLeeSTS", "score", lambda _: 0.99, "its interval"),
        (f"offline_suite/{SUITE}/eos/OfflineLeeSTS", "interval", lambda x: [x[0], 1.0], "interval"),
        (WORDS, "score", raise_by(1e-4), "scores.accuracy.mean is"),
        (WORDS, "scores.accuracy.per_seed", lambda x: x[:2], "scores.accuracy.per_seed is"),
        (f"{LEAKAGE}/none/triples", "score", raise_by(1e-4), "score is"),
        (f"{LEAKAGE}/none/triples", "scores.gap", raise_by(1e-4), "scores.gap is"),
        (f"{LEAKAGE}/none/triples", "interval", lambda x: [x[0] - 0.01, x[1]], "interval[0] is"),
        (f"{LAYERS}/none/wikipedia", "score", raise_by(1e-4), "wikipedia.npz gives"),
        (f"{LAYERS}/none/wikipedia", "scores.mean", lambda x: [*x[:-1], 0.9], "scores.mean[30] is"),
        (PAIRS, "score", raise_by(1e-4), "scores.bootstrap.score is"),
        (MASKED, "score", raise_by(1e-4), "score"),
        (MASKED, "n", raise_by(1), "n = "),
        (f"mteb_subset/{SUITE}/mean/SICK-R", "metric", lambda _: "pearson", "metric is 'pearson'"),
        (f"mteb_subset/{SUITE}/mean/STS17", "subset", lambda _: "default", "subset is 'default'"),
        (PAIRS, "split", lambda _: "test", "split is 'test', the registry has 'validation'"),
        (RATE, "split", lambda _: "test", "split is 'test', the registry has 'validation'"),
        (
            f"mteb_subset/{SUITE}/mean/TwentyNewsgroupsClustering",
            "dataset.status", lambda _: "exact", "dataset.status is 'exact', mirror.csv has",
        ),
        (WORDS, "dataset.status", lambda _: "substitute", "has 'exact' for CoNLL-2003"),
        (RATE, "scores.training.dirty", lambda _: True, "scores.training: made with changes"),
        (RATE, "scores.training.commit", lambda _: "unknown", "scores.training: made at commit"),
        (AMENDED, "scores.training.commit", lambda _: "4" * 40, "scores.training: amended"),
        (AMENDED, "provenance.commit", lambda _: "4" * 40, "amended (commit and dirty, see"),
    ],
)  # fmt: skip
def test_one_value_changed_by_hand_is_named(
    tmp_path: Path, name: str, field: str, value: Callable[[Any], Any], why: str
) -> None:
    path = tmp_path / "raw" / f"{name}.json"
    path.parent.mkdir(parents=True)
    for file in (RESULTS / "raw" / name).parent.glob(f"{path.stem}.*"):
        shutil.copy(file, path.parent)
    shutil.copy(RESULTS / "mirror.csv", tmp_path)
    assert faults(path) == []
    record = json.loads(path.read_text())
    inner, (*outer, last) = record, field.split(".")
    for key in outer:
        inner = inner[key]
    inner[last] = value(inner.get(last))
    path.write_text(json.dumps(record))
    found = faults(path)
    assert any(why in line for line in found), found


@pytest.mark.parametrize("damage", ["no npz", "no column", "fewer rows"])
def test_an_array_file_that_was_exchanged_is_named(tmp_path: Path, damage: str) -> None:
    import pandas as pd

    name = LAYERS + "/none/wikipedia" if damage == "no npz" else LEAKAGE + "/none/triples"
    path = tmp_path / "raw" / f"{name}.json"
    shutil.copytree((RESULTS / "raw" / name).parent, path.parent)
    assert faults(path) == []
    if damage == "no npz":
        path.with_suffix(".npz").write_bytes(b"PK\x03\x04")
    else:
        table = pd.read_parquet(path.with_suffix(".parquet"))
        other = table.drop(columns="cos_pos") if damage == "no column" else table[:-1]
        other.to_parquet(path.with_suffix(".parquet"))
    found = faults(path)
    named = "n is " if damage == "fewer rows" else "cannot be read"
    assert any(named in line and f"{path.stem}." in line for line in found), found


def test_no_array_lies_there_without_its_record() -> None:
    arrays = [p for kind in ("npz", "parquet") for p in (RESULTS / "raw").rglob(f"*.{kind}")]
    assert arrays and [p for p in arrays if not p.with_suffix(".json").is_file()] == []


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_every_adapter_is_what_it_says(path: Path) -> None:
    note = json.loads(path.read_text())
    assert origin_faults(note["provenance"]) == []
    assert sha256_file(path.with_name(ADAPTER_WEIGHTS)) == note["adapter_sha256"]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_was_measured_at_a_clean_commit(path: Path) -> None:
    assert origin_faults(json.loads(path.read_text())["provenance"]) == []


def test_an_origin_that_was_corrected_says_where_it_is_explained() -> None:
    origins = [json.loads(path.read_text())["provenance"] for path in (*RECORDS, *ADAPTERS)]
    corrected = {p["commit"]: p["amended"] for p in origins if "amended" in p}
    text = LOG.read_text(encoding="utf-8")
    for commit, where in corrected.items():
        assert LOG.name in where and commit[:9] in text


def test_every_origin_is_a_commit_of_this_history() -> None:
    """Any forty digits look like a commit."""
    shallow = git("rev-parse", "--is-shallow-repository")
    if shallow.returncode or shallow.stdout.strip() != "false":
        pytest.skip("the history is not here: no git, or a shallow clone")
    notes = [json.loads(path.read_text()) for path in (*RECORDS, *ADAPTERS, *BENCHMARKS)]
    trainings = [
        note["scores"]["training"] for note in notes if "training" in note.get("scores", {})
    ]
    states = [note["provenance"] for note in notes] + [t for t in trainings if t]
    commits = {state["commit"] for state in states}
    assert len(commits) > 5 and any(trainings)
    assert git("merge-base", "--is-ancestor", "0" * 40, "HEAD").returncode != 0
    assert {c for c in commits if git("merge-base", "--is-ancestor", c, "HEAD").returncode} == set()


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
