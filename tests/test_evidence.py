"""The committed evidence: clean commits, scripts that exist, adapters that are the shipped ones."""

import json
import subprocess
from pathlib import Path

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
    files = (*RECORDS, *ADAPTERS, *BENCHMARKS)
    commits = {json.loads(path.read_text())["provenance"]["commit"] for path in files}
    assert len(commits) > 5
    assert git("merge-base", "--is-ancestor", "0" * 40, "HEAD").returncode != 0
    assert {c for c in commits if git("merge-base", "--is-ancestor", c, "HEAD").returncode} == set()


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
