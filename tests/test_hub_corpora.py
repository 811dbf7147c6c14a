"""Word and text corpora from a hub of folders, read by the real ``datasets`` library."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from fake_hub import FakeHub, repository

from llm2vec import corpora
from llm2vec.errors import DataError
from llm2vec.registry_datasets import CONLL, HUB_REVISIONS, WIKITEXT
from llm2vec.words import TAGS, load_corpus

COLUMNS = {"pos_tags": "pos", "chunk_tags": "chunking", "ner_tags": "ner"}
ROWS = {"train": 3, "validation": 1, "test": 2}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """CoNLL-2003 as it lies there: a loading script, and its rows converted in a branch."""
    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    hub = FakeHub(tmp_path / "hub", monkeypatch)
    script = hub.folder / CONLL / "conll2003.py"
    script.parent.mkdir(parents=True)
    script.write_text("raise SystemExit('code of a repository ran')\n")
    branch = tmp_path / "converted"
    tags = {c: Sequence(ClassLabel(names=list(TAGS[task]))) for c, task in COLUMNS.items()}
    features = Features({"id": Value("string"), "tokens": Sequence(Value("string"))} | tags)
    row = {
        "id": "0", "tokens": ["EU", "rejects"],
        "pos_tags": ["NNP", "VBZ"], "chunk_tags": ["B-NP", "B-VP"], "ner_tags": ["B-ORG", "O"],
    }  # fmt: skip
    for split, count in ROWS.items():
        file = branch / "conll2003" / split / "0000.parquet"
        file.parent.mkdir(parents=True)
        Dataset.from_list([row] * count, features=features).to_parquet(file)
    hub.branches[CONLL, HUB_REVISIONS[CONLL]] = branch
    return hub


def test_conll_comes_from_the_converted_branch(hub: FakeHub) -> None:
    corpus, source = load_corpus("conll2003")
    assert {split: len(sentences) for split, sentences in corpus.items()} == ROWS
    assert corpus["train"][0].words == ("EU", "rejects")
    assert corpus["test"][1].tags == {
        "pos": ("NNP", "VBZ"), "chunking": ("B-NP", "B-VP"), "ner": ("B-ORG", "O"),
    }  # fmt: skip
    # The hub, offline in tests, does not tell which commit the branch means.
    assert (source.source, source.revision) == ("hub", "refs/convert/parquet")
    assert {asked[1] for asked in hub.asked} == {None}


def test_the_loading_script_is_not_run_but_named(hub: FakeHub) -> None:
    hub.branches.clear()
    with pytest.raises(DataError, match=r"conll2003.*scripts are no longer supported"):
        load_corpus("conll2003")


def test_wikitext_comes_at_its_commit(hub: FakeHub) -> None:
    rows = {"train": [{"text": " = A = \n"}, {"text": ""}, {"text": " One row . \n"}]}
    repository(hub.folder / WIKITEXT, {corpora.WIKITEXT_CONFIG: rows})
    texts, (source,) = corpora.training_texts()
    assert texts == ["= A =", "One row ."]
    assert source.revision == HUB_REVISIONS[WIKITEXT] and len(source.revision) == 40
    assert hub.asked == [(WIKITEXT, "wikitext-103-raw-v1", "train", source.revision)]
