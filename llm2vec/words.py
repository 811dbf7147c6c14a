"""Words, their tags, and the tokens that carry them (paper 3.1, D.1.3).

Two corpora: CoNLL-2003 (``conll2003``: mirror or hub) and a small demonstration corpus in the
same format that this repository carries (``mini``), whose scores say nothing about CoNLL-2003.

A sentence becomes a text by joining its words with single blanks; the text is tokenized whole and
tokens find their words by character offsets:

- a token belongs to every word of which it covers a character; a token that covers nothing but
  the blank before a word begins that word;
- a BOS token stands in front for every backbone, put there where the tokenizer adds none, so
  every word has a position before it. Encoders keep their CLS and SEP;
- a word that the tokenizer swallows (a control character, say) is represented by the last
  position before the place where it would be.

On purpose, other than the published code: that tokenizes each word by itself, which gives the
same tokens with the SentencePiece tokenizers of the paper's models but loses the blanks with
byte-level ones; and it cuts long sentences, dropping the lost words from the score. Here a
sentence that does not fit is an error (no sentence of CoNLL-2003 comes near the limit).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from llm2vec.data import Source, load_split
from llm2vec.errors import DataError, SettingError
from llm2vec.paths import RESOURCES
from llm2vec.registry import Variant
from llm2vec.registry_datasets import CONLL

Alignment = Literal["same", "previous"]
ALIGNMENTS: tuple[Alignment, ...] = ("same", "previous")


def alignment_of(variant: Variant) -> Alignment:
    """Where the paper reads a word: at the previous positions after MNTP, else at its own."""
    return "previous" if "mntp" in variant.stages else "same"


_POS = (
    "\" '' # $ ( ) , . : `` CC CD DT EX FW IN JJ JJR JJS LS MD NN NNP NNPS NNS NN|SYM PDT POS "
    "PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG VBN VBP VBZ WDT WP WP$ WRB"
)


def _iob2(kinds: str) -> tuple[str, ...]:
    return ("O", *(f"{mark}-{kind}" for kind in kinds.split() for mark in "BI"))


# The sets that the published probe has outputs for, in the order of the hub dataset's integers.
# '#', '``', B-UCP and I-UCP never occur in the data.
TAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "chunking": _iob2("ADJP ADVP CONJP INTJ LST NP PP PRT SBAR UCP VP"),
        "ner": _iob2("PER ORG LOC MISC"),
        "pos": tuple(_POS.split()),
    }
)
_COLUMNS = {"pos": "pos_tags", "chunking": "chunk_tags", "ner": "ner_tags"}
MINI = RESOURCES / "mini_conll"
CORPORA: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"conll2003": ("train", "validation", "test"), "mini": ("train", "test")}
)


class Sentence(NamedTuple):
    """Words and, per task, one tag each; ``place`` is where it stands, for messages."""

    words: tuple[str, ...]
    tags: Mapping[str, tuple[str, ...]]
    place: str


# --------------------------------------------------------------------------- reading
def read_conll(path: Path) -> list[Sentence]:
    """Sentences of a file in CoNLL-2003's format: ``word POS chunk NER``, an empty line between.

    Raises :class:`DataError` with file and line for a malformed line, an unknown tag, or a tag
    that continues nothing (chunk and NER tags are IOB2).
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    sentences: list[Sentence] = []
    rows: list[list[str]] = []
    for number, line in enumerate([*lines, ""], start=1):
        place = f"{path}:{number}"
        if line.strip() and not line.startswith("-DOCSTART-"):
            before = rows[-1] if rows else None
            rows.append(_row(line.rstrip("\r"), before, place))
        elif rows:
            sentences.append(_sentence(rows, f"{path}:{number - len(rows)}"))
            rows = []
    if not sentences:
        raise DataError(f"{path}: holds no sentence.")
    return sentences


def _row(line: str, before: list[str] | None, place: str) -> list[str]:
    row = line.split(" ")
    if len(row) != 4 or not all(row):
        raise DataError(
            f"{place}: malformed line {line!r}. Expected 'word POS chunk NER' with single blanks."
        )
    for task, column in (("pos", 1), ("chunking", 2), ("ner", 3)):
        _check_tag(task, row[column], place)
        mark, _, kind = row[column].partition("-")
        if task != "pos" and mark == "I":
            opened = before[column] if before else "O"
            if opened not in (f"B-{kind}", f"I-{kind}"):
                raise DataError(f"{place}: {row[column]} follows {opened}; begin with B-{kind}.")
    return row


def _check_tag(task: str, tag: str, place: str) -> None:
    if tag not in TAGS[task]:
        raise DataError(f"{place}: unknown {task} tag {tag!r}. Valid: {' '.join(TAGS[task])}")


def _sentence(rows: list[list[str]], place: str) -> Sentence:
    words, *columns = (tuple(column) for column in zip(*rows, strict=True))
    return Sentence(words, dict(zip(("pos", "chunking", "ner"), columns, strict=True)), place)


def _from_table(row: Any, place: str) -> Sentence:
    """A row of the hub's layout; tags come as text or as integers into :data:`TAGS`."""
    words = tuple(str(word) for word in row.tokens)
    if not words:
        raise DataError(f"{place}: has no words.")
    if not all(words):
        raise DataError(f"{place}: word {words.index('') + 1} is empty.")
    tags = {}
    for task, column in _COLUMNS.items():
        values = [_name(task, value, place) for value in getattr(row, column)]
        if len(values) != len(words):
            raise DataError(f"{place}: {len(words)} words but {len(values)} {column}.")
        tags[task] = tuple(values)
    return Sentence(words, tags, place)


def _name(task: str, value: Any, place: str) -> str:
    if isinstance(value, int | np.integer):
        if not 0 <= value < len(TAGS[task]):
            raise DataError(f"{place}: {task} tag {value} is not below {len(TAGS[task])}.")
        return TAGS[task][int(value)]
    _check_tag(task, value, place)
    return value


def load_corpus(
    data: str, max_sentences: int | None = None
) -> tuple[dict[str, list[Sentence]], Source]:
    """Every split of ``conll2003`` or ``mini``, and where it came from.

    ``max_sentences`` keeps the first so many of each split (a trial, not a measurement).
    """
    load = _load_mini if data == "mini" else _load_conll
    corpus, source = load()
    return {split: sentences[:max_sentences] for split, sentences in corpus.items()}, source


def _load_conll() -> tuple[dict[str, list[Sentence]], Source]:
    corpus, source = {}, None
    for split in CORPORA["conll2003"]:
        table, source = load_split(CONLL, split, columns=("tokens", *_COLUMNS.values()))
        corpus[split] = [
            _from_table(row, f"{CONLL} {split}, sentence {number}")
            for number, row in enumerate(table.itertuples(index=False), start=1)
        ]
    assert source is not None
    return corpus, source


def corpus_revision(data: str) -> str:
    """Revision of a corpus that the package carries (a hash of its files), else empty."""
    if data != "mini":
        return ""
    digest = hashlib.sha256()
    for split in CORPORA["mini"]:
        digest.update((MINI / f"{split}.txt").read_bytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def _load_mini() -> tuple[dict[str, list[Sentence]], Source]:
    corpus = {split: read_conll(MINI / f"{split}.txt") for split in CORPORA["mini"]}
    return corpus, Source("mini_conll", corpus_revision("mini"), "repository", "demonstration")


# --------------------------------------------------------------------------- tokens
@dataclass(frozen=True)
class Tokens:
    """A sentence as token ids, and the positions [start, end) of each word for each alignment."""

    ids: list[int]
    spans: Mapping[Alignment, list[tuple[int, int]]]


def align(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> dict[Alignment, list[tuple[int, int]]]:
    """Positions of each word's tokens, and the same shifted back by one.

    ``offsets``: characters [start, end) of each token in ``" ".join(words)``; ``special``: 1 for
    tokens that the tokenizer added, of which position 0 must be one. Rules: see the module.
    """
    owner: list[int] = []  # word of each character; a blank counts to the word behind it
    blank: list[bool] = []
    for index, word in enumerate(words):
        gap = [index] if index else []
        owner += gap + [index] * len(word)
        blank += [True] * len(gap) + [False] * len(word)
    found: list[tuple[int, int] | None] = [None] * len(words)
    for position, (start, end) in enumerate(offsets):
        if special[position]:
            continue
        inked = [c for c in range(start, end) if not blank[c]] or [min(start, len(owner) - 1)]
        for index in range(owner[inked[0]], owner[inked[-1]] + 1):
            first = found[index][0] if found[index] else position
            found[index] = (first, position + 1)
    return _with_vanished(found)


def _with_vanished(found: list[tuple[int, int] | None]) -> dict[Alignment, list[tuple[int, int]]]:
    spans: dict[Alignment, list[tuple[int, int]]] = {"same": [], "previous": []}
    end = 1
    for span in found:
        if span is None:
            spans["same"].append((end - 1, end))
            spans["previous"].append((end - 1, end))
        else:
            end = span[1]
            spans["same"].append(span)
            spans["previous"].append((span[0] - 1, span[1] - 1))
    return spans


def tokenize(tokenizer: Any, sentences: Sequence[Sentence], max_length: int) -> list[Tokens]:
    """Token ids (special tokens included, BOS always in front) and word positions.

    Raises :class:`DataError` naming the place of a sentence of more than ``max_length`` tokens.
    """
    encoded = tokenizer(
        [" ".join(sentence.words) for sentence in sentences],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        truncation=False,
        padding=False,
        verbose=False,
    )
    result = []
    rows = zip(
        sentences,
        encoded["input_ids"],
        encoded["offset_mapping"],
        encoded["special_tokens_mask"],
        strict=True,
    )
    for sentence, ids, offsets, special in rows:
        if not special or not special[0]:
            ids, offsets, special = [_bos(tokenizer), *ids], [(0, 0), *offsets], [1, *special]
        if len(ids) > max_length:
            raise DataError(
                f"{sentence.place}: a sentence of {len(ids)} tokens, the context holds "
                f"{max_length}. Split the sentence; words are never cut off silently."
            )
        result.append(Tokens(list(ids), align(sentence.words, offsets, special)))
    return result


def _bos(tokenizer: Any) -> int:
    if tokenizer.bos_token_id is None:
        raise SettingError(
            f"{type(tokenizer).__name__} neither adds a token in front nor has a BOS token, so the "
            "first word has no state before it. Use a tokenizer with a BOS token."
        )
    return tokenizer.bos_token_id


def token_digest(sequences: Iterable[Sequence[int]]) -> str:
    """Hex sha256 of token sequences, boundaries included."""
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(np.asarray([len(ids), *ids], dtype="<i8").tobytes())
    return digest.hexdigest()


def bounds(lengths: Iterable[int]) -> np.ndarray:
    """Where each of consecutive pieces begins, and the end: (n + 1,)."""
    return np.concatenate([[0], np.cumsum(list(lengths), dtype=np.int64)])


def label_ids(task: str, sentences: Iterable[Sentence]) -> np.ndarray:
    """Tags of all words in a row, as positions in ``TAGS[task]``."""
    index = {tag: number for number, tag in enumerate(TAGS[task])}
    return np.array([index[tag] for s in sentences for tag in s.tags[task]], dtype=np.int64)


def by_sentence(values: Sequence[Any], starts: np.ndarray) -> Iterator[Sequence[Any]]:
    """Cut per-word values into sentences at ``starts`` (as :func:`bounds` gives them)."""
    for start, end in pairwise(starts):
        yield values[start:end]
