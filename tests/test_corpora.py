"""Texts to train on: where they come from, what stands in for them, what is said about it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from model_hub import COMMIT, serve

from llm2vec import corpora
from llm2vec.errors import AssetError, DataError
from llm2vec.registry_datasets import SENTENCES, STAND_IN
from llm2vec.results import sha256_file

PARAGRAPHS = ["Dr. Smith lived in Rome. He wrote three books there.", "A second paragraph is here."]


@pytest.fixture
def small_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with a few rows of each corpus; no hub, and a small embedded sample."""
    tables = {
        "wikitext-103-raw-v1/test.parquet": {"text": ["", " = A = \n", " One row . \n"]},
        "wikitext-103-raw-v1/train.parquet": {"text": [" Training row . \n", ""]},
        "wiki-sentences/train.parquet": {
            "text": ["It rains and it snows.", "It rains.", "It snows.", "The sun shines."],
            "source": ["wiki-split complex", "wiki-split simple", "wiki-split simple", "own"],
        },
    }
    for name, columns in tables.items():
        file = tmp_path / "mirror" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(file)
    (tmp_path / "mirror" / "MANIFEST.csv").write_text(
        "dataset,file,status\nwiki-sentences,train.parquet,stand-in\n"
    )
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    monkeypatch.setattr("llm2vec.offline_corpora.training_paragraphs", lambda: PARAGRAPHS)
    return tmp_path / "mirror"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)


def test_wikitext_train_is_preferred(small_mirror: Path) -> None:
    texts, sources = corpora.training_texts()
    assert texts == ["Training row ."]
    assert [(s.id, s.source) for s in sources] == [("Salesforce/wikitext", "mirror")]
    assert corpora.wikitext("test")[0] == ["= A =", "One row ."]


def test_without_the_train_split_other_text_stands_in_and_says_so(
    small_mirror: Path, no_hub: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_mirror / "wikitext-103-raw-v1" / "train.parquet").unlink()
    texts, sources = corpora.training_texts()
    assert set(PARAGRAPHS) < set(texts) and "It rains." in texts
    assert [s.source for s in sources] == ["mirror", "asset"]
    assert "stand-in" in sources[0].status and sources[1].status == STAND_IN
    assert sources[0].id == "wiki-sentences", "not by the name of the sentences it stands in for"
    file = small_mirror / "wiki-sentences" / "train.parquet"
    assert sources[0].revision == f"sha256:{sha256_file(file)[:16]}"
    assert "train split is not to be had" in capsys.readouterr().err


def test_sentences_leave_out_near_paraphrases(small_mirror: Path, no_hub: None) -> None:
    texts, _ = corpora.training_sentences()
    assert texts[:2] == ["It rains and it snows.", "The sun shines."]
    assert texts[2:] == [
        "Dr. Smith lived in Rome.", "He wrote three books there.", "A second paragraph is here."
    ]  # fmt: skip


def test_sentences_of_the_hub_are_used_where_there_is_no_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "wiki1m_for_simcse.txt"
    file.write_text("One sentence.\n\nAnother one.\n", encoding="utf-8")
    asked = []

    def download(repository: str, name: str, **kwargs: object) -> str:
        asked.append((repository, name, kwargs["repo_type"]))
        return str(file)

    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    texts, sources = corpora.training_sentences()
    assert texts == ["One sentence.", "Another one."]
    assert asked == [("princeton-nlp/datasets-for-simcse", "wiki1m_for_simcse.txt", "dataset")]
    assert (sources[0].source, sources[0].status) == ("hub", "exact")


def test_a_full_disk_does_not_make_other_sentences_stand_in(
    small_mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fill)
    with pytest.raises(OSError, match="No space left"):
        corpora.training_sentences()


FROM_THE_HUB = """
from llm2vec import corpora
texts, (source,) = corpora.training_sentences()
print(texts, source.revision, source.status)
"""


@pytest.mark.slow
def test_sentences_downloaded_once_are_found_offline_by_their_commit(tmp_path: Path) -> None:
    """With the real client, whose cache notes what is newest only for who asks for that."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / corpora.SENTENCES_FILE).write_text("One sentence.\n", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "LLM2VEC_DATA"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    said = []
    with serve(tmp_path / "hub", f"datasets/{SENTENCES}") as address:
        for offline in "01":
            more = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": offline}
            command = [sys.executable, "-c", FROM_THE_HUB]
            done = subprocess.run(
                command, env=environment | more, check=True, capture_output=True, text=True
            )
            said.append(done.stdout.strip())
    assert said == [f"['One sentence.'] {COMMIT} exact"] * 2


def test_sentences_of_a_mirror_that_are_others_do_not_hide_those_of_the_hub(
    small_mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = small_mirror.parent / "wiki1m_for_simcse.txt"
    file.write_text("One sentence.\n", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    assert corpora.training_sentences()[0] == ["One sentence."]


def test_exact_sentences_of_a_mirror_are_used_alone(
    small_mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub should not be asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    (small_mirror / "MANIFEST.csv").write_text(
        "dataset,file,status\nwiki-sentences,train.parquet,exact\n"
    )
    texts, (source,) = corpora.training_sentences()
    assert texts == ["It rains and it snows.", "It rains.", "It snows.", "The sun shines."]
    assert (source.source, source.status) == ("mirror", "exact")


def test_no_text_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch, no_hub: None) -> None:
    def refuse() -> list[str]:
        raise AssetError("no network")

    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    monkeypatch.setattr("llm2vec.offline_corpora.training_paragraphs", refuse)
    for texts in (corpora.training_texts, corpora.training_sentences):
        with pytest.raises(DataError, match=r"no training text: .* --data"):
            texts()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Größe\n".encode("latin-1"), "is not UTF-8 (byte 2)"),
        (b"", "holds no text"),
        (b"\n  \n", "holds no text"),
        (None, "cannot read"),
    ],
)
def test_bad_text_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        corpora.read_text_file(file)
    assert message in str(caught.value) and "texts.txt" in str(caught.value)


def test_text_file_is_read_by_lines_and_hashed(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("Größe.\r\n\n  Zw\u2028ei. \n", encoding="utf-8", newline="")
    texts, (source,) = corpora.training_texts(file)
    assert texts == ["Größe.", "Zw\u2028ei."] == corpora.training_sentences(file)[0]
    assert source.source == "file" and len(source.revision) == 16
