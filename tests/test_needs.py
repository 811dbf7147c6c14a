"""Whether the text to train on is here: the paper's, not what stands in for it."""

from pathlib import Path

import pytest
from tiny_mirror import add_status

from llm2vec import needs


def test_text_that_only_stands_in_is_not_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("LLM2VEC_DATA", str(mirror))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(needs, "hub_answers", lambda: False)
    rows = {"wikitext-103-raw-v1": ("train",), "wiki-sentences": ("train",),
            "conll2003": ("train", "validation", "test")}  # fmt: skip
    for status, expected in (
        ("exact", ["present"] * 3),
        ("reconstructed", ["present", "missing", "present"]),
        ("stand-in for training text", ["missing", "missing", "present"]),
    ):
        for name, splits in rows.items():
            (mirror / name).mkdir(exist_ok=True)
            for split in splits:
                (mirror / name / f"{split}.parquet").touch()
                add_status(mirror, name, f"{split}.parquet", status)
        assert [item.state for item in needs.check_training_text()] == expected
    (mirror / "conll2003" / "test.parquet").unlink()
    assert [item.state for item in needs.check_training_text()] == ["missing"] * 3
    cached = tmp_path / "hub" / "datasets--princeton-nlp--datasets-for-simcse"
    for file in ("refs/main", f"snapshots/{'c' * 40}/wiki1m_for_simcse.txt"):
        (cached / file).parent.mkdir(parents=True)
        (cached / file).write_text("c" * 40)
    assert [item.state for item in needs.check_training_text()][1] == "present"
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "nowhere"))
    assert all("is not a folder" in item.note for item in needs.check_training_text())
