"""Pooling leakage: only the tokens of A are pooled, and only attention can tell C from D."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from leakage_help import BI, ECHO, TRIPLES, UNI, cosines_of, triple_line, write_lines

from llm2vec import leakage
from llm2vec.attention import set_attention
from llm2vec.errors import AttentionError, DataError
from llm2vec.leakage import Triple, find_prefix, find_prefixes, prefix_cosines


# --------------------------------------------------------------------------- triples
def test_own_triples_are_complete() -> None:
    own = leakage.load_triples()
    assert len(own.triples) >= 100
    assert own.setting is None
    assert own.triples[0].sentences[0] == f"{own.triples[0].a} {own.triples[0].b}"


def test_own_file_is_read_and_named(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "mine.jsonl", triple_line(a=" It is ", topic=...), "", triple_line(id="y")
    )
    found = leakage.load_triples(file)
    assert found.setting == "mine"
    assert found.triples[0] == Triple("x", "It is", "hot.", "warm.", "cold.", "")
    assert [t.id for t in found.triples] == ["x", "y"]
    assert found.sha256 != leakage.load_triples().sha256
    assert found.source["source"] == "file"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{not json", "not JSON"),
        ('["a"]', "not a JSON object"),
        (triple_line(id="y", c=...), "field 'c'"),
        (triple_line(id="y", d="  "), "field 'd'"),
        (triple_line(id="y", b=3), "field 'b'"),
        (triple_line(id=7), "field 'id'"),
        (triple_line(), "id 'x' is taken by line 1"),
    ],
)
def test_bad_line_is_named_with_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    file = write_lines(tmp_path / "bad.jsonl", triple_line(), line)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        leakage.load_triples(file)
    assert f"{file}, line 2" in str(caught.value)


def test_missing_empty_and_binary_files_are_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for file, what in {
        tmp_path / "none.jsonl": "No such file",
        empty: "holds no triples",
        binary: "not UTF-8",
    }.items():
        with pytest.raises(DataError, match=what) as caught:
            leakage.load_triples(file)
        assert str(file) in str(caught.value)


# --------------------------------------------------------------------------- the span of A
@pytest.fixture(scope="session")
def tokenizers(make_tiny_llama: Any) -> dict[bool, Any]:
    """Byte-level BPE tokenizers that add BOS, or do not."""
    return {add_bos: make_tiny_llama(add_bos=add_bos).tokenizer for add_bos in (True, False)}


words = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
).map(" ".join)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("echo", [False, True])
@given(a=words, b=words)
@example(a="The fox's", b="'s")
@example(a="日本 é", b="é")
@example(a="so so so", b="so so")
def test_span_is_what_a_alone_gives(
    tokenizers: dict[bool, Any], add_bos: bool, echo: bool, a: str, b: str
) -> None:
    tokenizer = tokenizers[add_bos]
    prefix = find_prefix(tokenizer, f"{a} {b}", a, echo)
    # The second showing follows a blank, which byte-level BPE mostly merges with the word.
    alone = tokenizer(" " + a if echo else a, add_special_tokens=False)["input_ids"]
    alone = alone[tokenizer.decode(alone[:1]) == " " :]
    assert [prefix.ids[p] for p in prefix.positions] == alone
    assert not prefix.merged
    start = prefix.positions[0]
    assert prefix.positions == list(range(start, start + len(alone)))
    assert start > len(alone) if echo else start == add_bos


def test_echo_pools_the_second_occurrence(tokenizers: dict[bool, Any]) -> None:
    tokenizer = tokenizers[True]
    prefix = find_prefix(tokenizer, "The dog sleeps", "The dog", echo=True)
    before = tokenizer.decode(prefix.ids[: prefix.positions[0]], skip_special_tokens=True)
    assert "The dog sleeps" in before
    assert tokenizer.decode(prefix.ids[prefix.positions[-1] + 1 :]) == " sleeps"


def merging_tokenizer(*merges: tuple[str, str]) -> Any:
    """BPE over characters that does not stop at blanks."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", *" abcdefghijklmnopqrstuvwxyz.RT:\n"]  # the echo template's as well
    pieces = letters + ["".join(pair) for pair in merges]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, list(merges))), pad_token="<pad>"
    )


def test_token_across_the_boundary_is_left_out() -> None:
    tokenizer = merging_tokenizer(("t", " "), ("t ", "s"))
    prefix = find_prefix(tokenizer, "the cat sat", "the cat")
    assert tokenizer.convert_ids_to_tokens(prefix.ids)[6] == "t s"
    assert tokenizer.convert_ids_to_tokens([prefix.ids[p] for p in prefix.positions]) == list(
        "the ca"
    )
    assert prefix.merged


def test_trailing_blank_merges_no_character_of_b() -> None:
    tokenizer = merging_tokenizer(("t", " "))
    prefix = find_prefix(tokenizer, "the cat sat", "the cat")
    assert len(prefix.positions) == 7
    assert not prefix.merged


def test_leading_blank_merges_no_character_of_the_template() -> None:
    tokenizer = merging_tokenizer((" ", "t"))
    prefix = find_prefix(tokenizer, "the cat sat", "the cat", echo=True)
    pooled = tokenizer.convert_ids_to_tokens([prefix.ids[p] for p in prefix.positions])
    assert pooled == [" t", *"he cat"]
    assert not prefix.merged


def test_triple_pools_only_what_its_sentences_share(make_tiny_llama: Any) -> None:
    tokenizer = merging_tokenizer(("t", " "), ("t ", "s"))
    triple = Triple("m", "the cat", "sat.", "was sitting.", "ran.")
    prefixes = find_prefixes(tokenizer, triple)
    assert [p.positions for p in prefixes] == [[0, 1, 2, 3, 4, 5]] * 3
    assert all(p.merged for p in prefixes)
    backbone = make_tiny_llama().model.model
    found = prefix_cosines(backbone, tokenizer, [triple])
    assert found.merged == 1
    leakage.check_cosines(found, UNI)


def test_triple_whose_beginning_merges_away_is_named() -> None:
    tokenizer = merging_tokenizer(("a", " "), ("a ", "b"))
    with pytest.raises(DataError, match=r"'gone'.*no whole token"):
        find_prefixes(tokenizer, Triple("gone", "a", "bc.", "bd.", "be."))


def test_sentence_that_does_not_fit_is_named(tokenizers: dict[bool, Any]) -> None:
    with pytest.raises(DataError, match=r"'3'.*at most 20 fit"):
        find_prefixes(tokenizers[True], TRIPLES[2], limit=20)


# --------------------------------------------------------------------------- cosines
def alone_cosine(backbone: Any, tokenizer: Any, a: str, one: str, other: str) -> float:
    """The same by another way: one sentence at a time, A's tokens counted from the left."""
    vectors = []
    for sentence in (one, other):
        ids = tokenizer(sentence)["input_ids"]
        length = len(tokenizer(a, add_special_tokens=False)["input_ids"])
        first = len(ids) - len(tokenizer(sentence, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            states = backbone(torch.tensor([ids])).last_hidden_state[0]
        vectors.append(states[first : first + length].mean(0))
    return float(torch.cosine_similarity(*vectors, dim=0))


@pytest.mark.parametrize("add_bos", [True, False])
def test_cosines_equal_those_of_single_sentences(make_tiny_llama: Any, add_bos: bool) -> None:
    model, tokenizer = make_tiny_llama(add_bos=add_bos)
    set_attention(model.model, True)
    found = prefix_cosines(model.model, tokenizer, TRIPLES)
    for i, triple in enumerate(TRIPLES):
        q, positive, negative = triple.sentences
        expected = [
            alone_cosine(model.model, tokenizer, triple.a, q, s) for s in (positive, negative)
        ]
        assert [found.positive[i], found.negative[i]] == pytest.approx(expected, abs=1e-5)


def test_order_and_tokens_do_not_depend_on_batches(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, tokenizer = tiny_llama.model.model, tiny_llama.tokenizer
    set_attention(backbone, True)
    together = prefix_cosines(backbone, tokenizer, TRIPLES)
    monkeypatch.setattr(leakage, "TRIPLES_PER_BATCH", 1)
    done: list[int] = []
    apart = prefix_cosines(backbone, tokenizer, TRIPLES, progress=done.append)
    assert done == [1, 1, 1]
    np.testing.assert_allclose(apart.positive, together.positive, atol=1e-5)
    np.testing.assert_allclose(apart.negative, together.negative, atol=1e-5)
    real = sum(len(tokenizer(s)["input_ids"]) for t in TRIPLES for s in t.sentences)
    assert together.cost["tokens"] == apart.cost["tokens"] == real
    assert apart.cost["padding_tokens"] < together.cost["padding_tokens"]


@pytest.mark.parametrize("add_bos", [True, False])
def test_causal_states_never_feel_what_follows(make_tiny_llama: Any, add_bos: bool) -> None:
    model, tokenizer = make_tiny_llama(add_bos=add_bos)
    found = prefix_cosines(model.model, tokenizer, leakage.load_triples().triples[:24])
    np.testing.assert_allclose(found.positive, 1, atol=1e-5)
    np.testing.assert_allclose(found.negative, 1, atol=1e-5)
    leakage.check_cosines(found, UNI)
    with pytest.raises(AttentionError, match="every cosine is 1"):
        leakage.check_cosines(found, BI)


def test_bidirectional_and_echo_feel_what_follows(tiny_llama: Any) -> None:
    backbone, tokenizer = tiny_llama.model.model, tiny_llama.tokenizer
    echo = prefix_cosines(backbone, tokenizer, TRIPLES, echo=True)
    assert echo.positive.max() < 1 - 1e-4
    leakage.check_cosines(echo, ECHO)
    set_attention(backbone, True)
    both = prefix_cosines(backbone, tokenizer, TRIPLES)
    assert max(both.positive.max(), both.negative.max()) < 1 - 1e-4
    leakage.check_cosines(both, BI)
    with pytest.raises(AttentionError, match=r"triple '[123]': the beginning's states feel"):
        leakage.check_cosines(both, UNI)


def test_nan_is_not_taken_for_causal() -> None:
    with pytest.raises(AttentionError, match="triple '1'"):
        leakage.check_cosines(cosines_of([1, np.nan], [1, 1]), UNI)


def test_same_continuation_ranks_right_and_swapped_wrong(tiny_llama: Any) -> None:
    backbone, tokenizer = tiny_llama.model.model, tiny_llama.tokenizer
    set_attention(backbone, True)
    told = [Triple(t.id, t.a, t.b, t.b, t.d) for t in TRIPLES]
    swapped = [Triple(t.id, t.a, t.b, t.d, t.c) for t in told]
    scores = [
        leakage.summarise(prefix_cosines(backbone, tokenizer, t))["score"] for t in (told, swapped)
    ]
    assert scores == [1.0, 0.0]


def test_encoder_baseline_pools_neither_cls_nor_sep(make_tiny_llama: Any) -> None:
    from tokenizers import processors
    from transformers import BertConfig, BertModel

    tokenizer = make_tiny_llama(add_bos=False).tokenizer
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, initializer_range=0.3,
    )  # fmt: skip
    backbone = BertModel(config).eval()
    found = prefix_cosines(backbone, tokenizer, TRIPLES)
    q, positive, _ = TRIPLES[0].sentences
    with torch.no_grad():
        states = [
            backbone(torch.tensor([tokenizer(s)["input_ids"]])).last_hidden_state[0]
            for s in (q, positive)
        ]
    length = len(tokenizer(TRIPLES[0].a, add_special_tokens=False)["input_ids"])
    left, right = (s[1 : 1 + length].mean(0) for s in states)
    expected = float(torch.cosine_similarity(left, right, dim=0))
    assert found.positive[0] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - 1) > 1e-3
