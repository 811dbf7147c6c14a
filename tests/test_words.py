"""Words find their tokens, CoNLL files are read or refused, tags are those of the data."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2vec import words
from llm2vec.data import Source
from llm2vec.errors import DataError, SettingError
from llm2vec.words import TAGS, Sentence, align, load_corpus, read_conll, tokenize


def sentence(*text: str) -> Sentence:
    return Sentence(text, {}, "corpus.txt:7")


# --------------------------------------------------------------------------- alignment by hand
# Position 0 is BOS: offsets (0, 0), special. Spans are [first, last + 1) positions.
CASES = {
    "one token a word, punctuation apart": (
        ["EU", "rejects", "."],
        [(0, 0), (0, 2), (3, 10), (11, 12)],
        [(1, 2), (2, 3), (3, 4)],
    ),
    "tokens that carry the blank before their word": (
        ["EU", "rejects", "."],
        [(0, 0), (0, 2), (2, 10), (10, 12)],
        [(1, 2), (2, 3), (3, 4)],
    ),
    "tokens that carry the blank behind their word": (
        ["EU", "rejects", "."],
        [(0, 0), (0, 3), (3, 11), (11, 12)],
        [(1, 2), (2, 3), (3, 4)],
    ),
    "a word of three pieces": (
        ["a", "boycott", "it"],
        [(0, 0), (0, 1), (2, 4), (4, 6), (6, 9), (10, 12)],
        [(1, 2), (2, 5), (5, 6)],
    ),
    "a blank of its own begins the next word": (
        ["a", "7", "b"],
        [(0, 0), (0, 1), (1, 2), (2, 3), (4, 5)],
        [(1, 2), (2, 4), (4, 5)],
    ),
    "two byte tokens of one character": (
        ["é", "x"],
        [(0, 0), (0, 1), (0, 1), (2, 3)],
        [(1, 3), (3, 4)],
    ),
    "a token over two words belongs to both": (
        ["New", "York", "!"],
        [(0, 0), (0, 8), (9, 10)],
        [(1, 2), (1, 2), (2, 3)],
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_words_find_their_tokens(case: str) -> None:
    text, offsets, expected = CASES[case]
    special = [1] + [0] * (len(offsets) - 1)
    spans = align(text, offsets, special)
    assert spans["same"] == expected
    assert spans["previous"] == [(start - 1, end - 1) for start, end in expected]


def test_closing_special_token_belongs_to_no_word() -> None:
    spans = align(["a", "b"], [(0, 0), (0, 1), (2, 3), (0, 0)], [1, 0, 0, 1])
    assert spans["same"] == [(1, 2), (2, 3)]


def test_vanished_words_take_the_last_position_before_them() -> None:
    # words: "~" gone at the front, "ab" in two tokens, "~" and "~" gone in the middle, "c"
    spans = align(
        ["~", "ab", "~", "~", "c"],
        [(0, 0), (2, 3), (3, 4), (9, 10), (0, 0)],
        [1, 0, 0, 0, 1],
    )
    assert spans["same"] == [(0, 1), (1, 3), (2, 3), (2, 3), (3, 4)]
    assert spans["previous"] == [(0, 1), (0, 2), (2, 3), (2, 3), (2, 3)]


@given(
    st.lists(st.text("abé東", min_size=1, max_size=6), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_any_cut_into_tokens_gives_every_word_its_own_tokens(text: list[str], random) -> None:
    offsets, expected, start = [(0, 0)], [], 0
    for word in text:
        cuts = [0, *sorted(random.sample(range(1, len(word)), random.randrange(len(word)))), None]
        pieces = [word[a:b] for a, b in pairwise(cuts)]
        expected.append((len(offsets), len(offsets) + len(pieces)))
        for piece in pieces:
            offsets.append((start, start + len(piece)))
            start += len(piece)
        start += 1
    assert align(text, offsets, [1] + [0] * (len(offsets) - 1))["same"] == expected


# --------------------------------------------------------------------------- tokenizers
_TOKENIZERS: dict[bool, object] = {}


def tokenizer_of(make_tiny_llama, add_bos: bool):
    """One byte-level tokenizer for all examples of a property."""
    if add_bos not in _TOKENIZERS:
        _TOKENIZERS[add_bos] = make_tiny_llama(add_bos).tokenizer
    return _TOKENIZERS[add_bos]


@pytest.fixture
def word_piece():
    """An uncased WordPiece tokenizer with CLS and SEP whose vocabulary is written out."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "eu", "reject", "##s", ".", "zu", "##rich", "-"]
    model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip


def test_word_piece_by_hand(word_piece) -> None:
    # Lower-casing and accent stripping, an unknown word, hyphens cut off, a soft hyphen that
    # the tokenizer removes: it stands between "Zürich" and "EU-EU".
    text = sentence("EU", "rejects", "Zürich", "\u00ad", "EU-EU", "東", ".")
    (tokens,) = tokenize(word_piece, [text], 64)
    #                    CLS eu reject ##s zu ##rich eu - eu [UNK] . SEP
    assert tokens.ids == [2, 4, 5, 6, 8, 9, 4, 10, 4, 1, 7, 3]
    assert tokens.spans["same"] == [(1, 2), (2, 4), (4, 6), (5, 6), (6, 9), (9, 10), (10, 11)]
    assert tokens.spans["previous"] == [(0, 1), (1, 3), (3, 5), (5, 6), (5, 8), (8, 9), (9, 10)]


@pytest.mark.parametrize("add_bos", [True, False])
@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1))
def test_byte_tokens_spell_their_word(make_tiny_llama, add_bos: bool, text: list[str]) -> None:
    tokenizer = tokenizer_of(make_tiny_llama, add_bos)
    (tokens,) = tokenize(tokenizer, [sentence(*text)], 10_000)
    spelled = [tokenizer.decode(tokens.ids[a:b]) for a, b in tokens.spans["same"]]
    assert [s.removeprefix(" ") for s in spelled] == text
    assert tokens.spans["same"][0][0] == 1 and tokens.spans["previous"][0][0] == 0
    assert tokens.spans["same"][-1][1] == len(tokens.ids)


def test_bos_stands_in_front_whether_the_tokenizer_adds_it_or_not(make_tiny_llama) -> None:
    text = [sentence("The", "naïve", "fox", "."), sentence("東京")]
    with_bos = tokenize(tokenizer_of(make_tiny_llama, True), text, 64)
    without = tokenize(tokenizer_of(make_tiny_llama, False), text, 64)
    assert with_bos == without
    assert all(t.ids.count(1) == 1 and t.ids[0] == 1 for t in without)


def test_a_tokenizer_without_bos_is_refused(make_tiny_llama) -> None:
    tokenizer = make_tiny_llama(False).tokenizer
    tokenizer.bos_token = None
    with pytest.raises(SettingError, match="no state before it"):
        tokenize(tokenizer, [sentence("The")], 64)


def test_a_sentence_fits_to_the_last_token_or_is_named(word_piece) -> None:
    text = sentence("EU", "rejects", ".")  # CLS eu reject ##s . SEP
    assert len(tokenize(word_piece, [text], 6)[0].ids) == 6
    with pytest.raises(DataError, match=r"corpus\.txt:7: a sentence of 6 tokens.* holds 5"):
        tokenize(word_piece, [text], 5)


# --------------------------------------------------------------------------- files
GOOD = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
the DT B-NP O
call NN I-NP O
. . O O

Ωmega NNP B-NP I-PER
"""


def test_conll_file_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(GOOD.replace("I-PER", "B-PER"), encoding="utf-8")
    first, second = read_conll(file)
    assert first.words == ("EU", "rejects", "the", "call", ".")
    assert first.tags == {
        "pos": ("NNP", "VBZ", "DT", "NN", "."),
        "chunking": ("B-NP", "B-VP", "B-NP", "I-NP", "O"),
        "ner": ("B-ORG", "O", "O", "O", "O"),
    }
    assert first.place == f"{file}:3"
    assert second == Sentence(
        ("Ωmega",), {"pos": ("NNP",), "chunking": ("B-NP",), "ner": ("B-PER",)}, f"{file}:9"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rejects VBZ B-VP O", "rejects VBZ B-VP", r":4: malformed line 'rejects VBZ B-VP'"),
        ("rejects VBZ B-VP O", "rejects VBZ  B-VP O", r":4: malformed"),
        ("rejects VBZ B-VP O", "rejects\tVBZ\tB-VP\tO", r":4: malformed"),
        ("rejects VBZ B-VP O", "re jects VBZ B-VP O", r":4: malformed"),
        ("rejects VBZ B-VP O", "rejects VBX B-VP O", r":4: unknown pos tag 'VBX'"),
        ("rejects VBZ B-VP O", "rejects VBZ VP O", r":4: unknown chunking tag 'VP'"),
        ("EU NNP B-NP B-ORG", "EU NNP B-NP B-GPE", r":3: unknown ner tag 'B-GPE'"),
        ("call NN I-NP O", "call NN I-VP O", r":6: I-VP follows B-NP; begin with B-VP"),
        ("", "", r":9: I-PER follows O"),  # a sentence's first tag continues nothing
    ],
)
def test_bad_lines_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(GOOD.replace(old, new) if old else GOOD, encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.txt" + message):
        read_conll(file)


def test_unreadable_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 NN B-NP O\n")
    (tmp_path / "empty.txt").write_text("-DOCSTART- -X- -X- O\n\n")
    for name, message in (("latin", "UTF-8"), ("empty", "no sentence"), ("absent", "No such")):
        with pytest.raises(DataError, match=rf"{name}\.txt: .*{message}"):
            read_conll(tmp_path / f"{name}.txt")


# --------------------------------------------------------------------------- corpora
@pytest.fixture(scope="module")
def conll(mirror: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM2VEC_DATA", str(mirror))
        return load_corpus("conll2003")


def test_conll_2003_has_its_published_sizes(conll) -> None:
    corpus, source = conll
    sizes = {split: len(sentences) for split, sentences in corpus.items()}
    assert sizes == {"train": 14_041, "validation": 3_250, "test": 3_453}
    count = {split: sum(len(s.words) for s in ss) for split, ss in corpus.items()}
    assert count == {"train": 203_621, "validation": 51_362, "test": 46_435}
    assert (source.id, source.source) == ("eriktks/conll2003", "mirror")
    assert corpus["train"][0].tags["ner"][:3] == ("B-ORG", "O", "B-MISC")


def test_tag_sets_are_those_of_the_data(conll) -> None:
    corpus, _ = conll
    never = {"chunking": {"B-UCP", "I-UCP"}, "ner": set(), "pos": {"#", "``"}}
    for task, tags in TAGS.items():
        seen = {tag for split in corpus.values() for s in split for tag in s.tags[task]}
        assert seen == set(tags) - never[task]
        assert len(tags) == len(set(tags))
    assert {task: len(tags) for task, tags in TAGS.items()} == {"chunking": 23, "ner": 9, "pos": 47}


def test_every_word_of_conll_has_a_position_before_it(conll, make_tiny_llama) -> None:
    sentences = conll[0]["test"]
    for tokens in tokenize(tokenizer_of(make_tiny_llama, False), sentences, 2048):
        assert all(0 < start < end for start, end in tokens.spans["same"])
        assert all(0 <= start < end for start, end in tokens.spans["previous"])


def hub_table(**changes: object) -> pd.DataFrame:
    row = {
        "id": "0", "tokens": ["EU", "rejects"], "pos_tags": [22, 42], "chunk_tags": [11, 21],
        "ner_tags": [3, 0],
    }  # fmt: skip
    return pd.DataFrame([row | changes])


def test_integer_tags_of_the_hub_become_names(monkeypatch: pytest.MonkeyPatch) -> None:
    table = hub_table(pos_tags=np.array([22, 42], dtype=np.int64))
    monkeypatch.setattr(
        words, "load_split", lambda *a, **k: (table, Source("x", "r", "hub", "exact"))
    )
    corpus, source = load_corpus("conll2003")
    assert corpus["test"][0].tags == {
        "pos": ("NNP", "VBZ"), "chunking": ("B-NP", "B-VP"), "ner": ("B-ORG", "O"),
    }  # fmt: skip
    assert source.revision == "r"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_tags": [22, 47]}, "validation, sentence 1: pos tag 47"),
        ({"ner_tags": ["B-ORG", "GPE"]}, "validation, sentence 1: unknown ner tag 'GPE'"),
        ({"chunk_tags": [11]}, "validation, sentence 1: 2 words but 1 chunk_tags"),
        ({"tokens": ["EU", ""]}, "validation, sentence 1: word 2 is empty"),
        ({"tokens": [], "pos_tags": [], "chunk_tags": [], "ner_tags": []}, "has no words"),
    ],
)
def test_bad_rows_are_named(monkeypatch: pytest.MonkeyPatch, change: dict, message: str) -> None:
    def load(_name: str, split: str, **_: object) -> tuple[pd.DataFrame, Source]:
        table = hub_table(**change) if split == "validation" else hub_table()
        return table, Source("x", "r", "hub", "exact")

    monkeypatch.setattr(words, "load_split", load)
    with pytest.raises(DataError, match=message):
        load_corpus("conll2003")


def test_mini_corpus_is_a_demonstration_and_is_cut_from_the_front() -> None:
    corpus, source = load_corpus("mini")
    assert source.status == "demonstration" and source.id != "eriktks/conll2003"
    assert list(corpus) == ["train", "test"]
    assert not {s.words for s in corpus["train"]} & {s.words for s in corpus["test"]}
    few, _ = load_corpus("mini", max_sentences=3)
    assert few == {split: sentences[:3] for split, sentences in corpus.items()}


def test_source_of_the_mini_corpus_follows_its_files(tmp_path, monkeypatch) -> None:
    before = load_corpus("mini")[1]
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(GOOD.replace("I-PER", "B-PER"), encoding="utf-8")
    monkeypatch.setattr(words, "MINI", tmp_path)
    after = load_corpus("mini")[1]
    assert after.revision != before.revision
    assert dataclasses.replace(after, revision=before.revision) == before
