"""What a record says of its adapters and of its script, against what is there."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_records import PROVENANCE, make_record

from llm2vec import integrity
from llm2vec.integrity import faults, script_of
from llm2vec.paths import ROOT
from llm2vec.results import write_record

CLEAN = {"commit": "0" * 40, "dirty": False}


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], None]:
    """Put an adapter of smollm2-135m among those trained here."""
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("llm2vec.paths.shipped_adapters_dir", lambda: tmp_path / "shipped")
    integrity._hashes.cache_clear()

    def put(place: str, content: bytes) -> None:
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(content)
        integrity._hashes.cache_clear()

    yield put
    integrity._hashes.cache_clear()


def test_another_adapter_than_the_records_is_named(
    adapters: Callable[[str, bytes], None], tmp_path: Path
) -> None:
    digests = [hashlib.sha256(content).hexdigest() for content in (b"one", b"two")]
    record = make_record(
        "mteb_subset", "smollm2-135m", "bi-mntp-simcse", "mean", "STS17", 0.5,
        metric="cosine_spearman", subset="en-en",
        scores={"main_score": 0.5, "cosine_spearman": 0.5},
        adapters=tuple(digests), provenance=PROVENANCE | CLEAN,
    )  # fmt: skip
    path = write_record(record, tmp_path)
    assert faults(path) == []  # none at hand: nothing to compare with
    adapters("shipped/smollm2-135m/mntp", b"one")
    adapters("shipped/smollm2-135m/mntp-simcse", b"two")
    assert faults(path) == []
    adapters("checkpoints/smollm2-135m/mntp", b"newer")
    assert faults(path) == []  # the shipped one is still the record's
    adapters("shipped/smollm2-135m/mntp-simcse", b"three")
    (line,) = faults(path)
    assert f"adapter mntp-simcse was {digests[1][:12]}, at hand is " in line


def test_scripts_of_this_repository() -> None:
    assert script_of("python experiments/04_mteb_subset.py --model x").name == "04_mteb_subset.py"
    assert script_of("python -W ignore benchmarks/row_order.py") is not None
    assert script_of("python -m benchmarks").parts[-2:] == ("benchmarks", "__main__.py")
    assert script_of("python -m llm2vec.assets") == ROOT / "llm2vec" / "assets.py"
    assert script_of("pytest -q") is script_of("python 'unbalanced") is None
    assert script_of("python ../elsewhere/experiments/x.py") is None
