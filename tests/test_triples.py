"""The project's own triples for the pooling-leakage analysis are well formed and fair.

Each line holds a beginning A with three continuations: B, its paraphrase C and a diverging D. The
comparison is fair only if shared words do not give C away, hence the overlap tests. Whether C
really means what B means, and D does not, is for a reader to judge; no test here can.
"""

import json
import re
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

TRIPLES = Path(__file__).resolve().parents[1] / "llm2vec" / "resources" / "triples.jsonl"
FIELDS = ("id", "a", "b", "c", "d", "topic")
N_TRIPLES = 120


def word_set(text: str) -> set[str]:
    """Lowercase words of `text` without punctuation; "months'" and "X-ray" stay one word."""
    return set(re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower()))


def jaccard(left: str, right: str) -> float:
    """Shared words over all words of two texts, in [0, 1]."""
    a, b = word_set(left), word_set(right)
    return len(a & b) / len(a | b)


def n_words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return TRIPLES.read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def triples(lines: list[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in lines]


def test_jaccard_golden() -> None:
    assert jaccard("The cat sat.", "the dog sat") == pytest.approx(2 / 4)
    assert jaccard("one's X-ray", "One's x-ray!") == 1.0
    assert jaccard("up, up", "down") == 0.0


def test_one_json_object_per_line(lines: list[str]) -> None:
    assert len(lines) == N_TRIPLES
    not_objects = [n for n, line in enumerate(lines, 1) if not isinstance(json.loads(line), dict)]
    assert not_objects == []


def test_file_ends_with_one_newline_and_has_unix_line_ends() -> None:
    raw = TRIPLES.read_bytes()
    assert raw.endswith(b"}\n")
    assert b"\r" not in raw


def test_schema(triples: list[dict[str, str]]) -> None:
    wrong = [t for t in triples if tuple(t) != FIELDS]
    wrong += [t for t in triples if not all(isinstance(v, str) and v for v in t.values())]
    assert wrong == []


def test_ids_count_up_without_gaps(triples: list[dict[str, str]]) -> None:
    assert [t["id"] for t in triples] == [f"t{n:03d}" for n in range(1, N_TRIPLES + 1)]


def test_beginnings_are_distinct(triples: list[dict[str, str]]) -> None:
    counts = Counter(t["a"].lower() for t in triples)
    assert [a for a, n in counts.items() if n > 1] == []


def test_beginnings_have_4_to_12_words(triples: list[dict[str, str]]) -> None:
    assert {t["id"]: n_words(t["a"]) for t in triples if not 4 <= n_words(t["a"]) <= 12} == {}


@pytest.mark.parametrize("field", ["b", "c", "d"])
def test_continuations_have_4_to_20_words(triples: list[dict[str, str]], field: str) -> None:
    lengths = {t["id"]: n_words(t[field]) for t in triples}
    assert {i: n for i, n in lengths.items() if not 4 <= n <= 20} == {}
    assert max(lengths.values()) - min(lengths.values()) >= 10, "lengths hardly vary"


def test_continuations_differ_within_a_triple_and_across(triples: list[dict[str, str]]) -> None:
    texts = Counter(t[field].lower() for t in triples for field in "bcd")
    assert [text for text, n in texts.items() if n > 1] == []


def test_overlap_does_not_give_the_paraphrase_away(triples: list[dict[str, str]]) -> None:
    b_c = mean(jaccard(t["b"], t["c"]) for t in triples)
    b_d = mean(jaccard(t["b"], t["d"]) for t in triples)
    assert b_c <= b_d


def test_overlap_does_not_give_it_away_in_reverse_either(triples: list[dict[str, str]]) -> None:
    # If C always shared fewer words with B than D does, counting words would rank all of them wrong
    # and the set would measure vocabulary instead of meaning.
    nearer = [jaccard(t["b"], t["c"]) > jaccard(t["b"], t["d"]) for t in triples]
    assert 0.15 <= mean(nearer) <= 0.5


def test_paraphrases_use_other_words(triples: list[dict[str, str]]) -> None:
    near_copies = {t["id"] for t in triples if jaccard(t["b"], t["c"]) > 0.5}
    assert near_copies == set()


@pytest.mark.parametrize("field", ["c", "d"])
def test_both_are_about_as_long_as_the_original(triples: list[dict[str, str]], field: str) -> None:
    ratios = {t["id"]: n_words(t[field]) / n_words(t["b"]) for t in triples}
    assert 0.5 <= mean(ratios.values()) <= 2
    assert {i: r for i, r in ratios.items() if not 0.5 <= r <= 2} == {}


def test_topics_are_varied(triples: list[dict[str, str]]) -> None:
    counts = Counter(t["topic"] for t in triples)
    assert len(counts) >= 12
    assert max(counts.values()) <= N_TRIPLES // 10, "one topic outweighs the others"


def test_text_is_clean_ascii(triples: list[dict[str, str]]) -> None:
    fields = [(t["id"], key, t[key]) for t in triples for key in FIELDS]
    assert [f for f in fields if f[2] != f[2].strip() or "  " in f[2]] == []
    assert [f for f in fields if not (f[2].isascii() and f[2].isprintable())] == []


def test_sentences_open_with_a_capital_and_close_with_one_full_stop(
    triples: list[dict[str, str]],
) -> None:
    assert [t["id"] for t in triples if not t["a"][0].isupper() or t["a"].endswith(".")] == []
    ends = [(t["id"], t[f]) for t in triples for f in "bcd" if not re.search(r"[a-z]\.$", t[f])]
    assert ends == []
