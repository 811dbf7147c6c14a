"""`LLM2Vec.encode`: what goes in, what comes out, and how many passes it takes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2vec import LLM2Vec
from llm2vec import encoder as encoder_module
from llm2vec.attention import check_attention
from llm2vec.encoder import load_encoder
from llm2vec.errors import AttentionError, SettingError, UnknownNameError
from llm2vec.registry import POOLINGS

INSTRUCTION = "Find the other dog:"
TEXTS = [
    "The quick brown fox",
    "dog",
    "",
    "A language model reads 😀 words.",
    "dog",
    "naïve\n\tcafé",
]
ODD = [
    "", " ", "\n\t", "😀", "👩‍👩‍👧‍👦", "a\x00b", "\x00", "\ud800", "x\udc00y", "\ud83d\ude00",
    "\ufeff", "\u202e", "<s></s><pad>", "word " * 3000, "z" * 5000, "你好" * 600,
]  # fmt: skip
anything = st.text(st.characters(exclude_categories=[]), max_size=30)
MakeEncoder = Callable[..., LLM2Vec]


@pytest.fixture(scope="module")
def make_encoder(make_encoder: MakeEncoder) -> MakeEncoder:
    """With BOS."""
    return partial(make_encoder, add_bos=True)


@pytest.fixture(scope="module")
def both(make_encoder: MakeEncoder) -> dict[str, LLM2Vec]:
    """One encoder per kind of attention; do not change them."""
    return {name: make_encoder(name) for name in ("uni", "bi")}


def close(got: np.ndarray, expected: np.ndarray, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@torch.no_grad()
def states_of(encoder: LLM2Vec, ids: list[int]) -> np.ndarray:
    return encoder.backbone(torch.tensor([ids])).last_hidden_state[0].numpy()


# --------------------------------------------------------------------------- by hand
@pytest.mark.parametrize("variant", ["uni", "bi"])
def test_vectors_made_by_hand(both: dict[str, LLM2Vec], variant: str) -> None:
    """Tokenizer, backbone and numpy alone, without a line of batching, span or pooling."""
    encoder = both[variant]
    text, start = "the other dog sleeps", len(encoder.tokenizer(INSTRUCTION)["input_ids"])
    ids = encoder.tokenizer(f"{INSTRUCTION} {text}")["input_ids"]
    states = states_of(encoder, ids)[start:]
    weights = np.arange(1, len(states) + 1)[:, None]
    got = encoder.encode_poolings([[INSTRUCTION, text]])
    close(got["mean"][0], states.mean(0))
    close(got["weighted_mean"][0], (states * weights).sum(0) / weights.sum())
    close(got["eos"][0], states_of(encoder, [*ids, encoder.tokenizer.eos_token_id])[-1])


def test_bos_is_never_pooled(both: dict[str, LLM2Vec]) -> None:
    ids = both["bi"].tokenizer("dog")["input_ids"]
    assert ids[0] == both["bi"].tokenizer.bos_token_id
    close(both["bi"].encode("dog"), states_of(both["bi"], ids)[1:].mean(0))


# --------------------------------------------------------------------------- shapes and order
@pytest.mark.parametrize("variant", ["uni", "bi"])
def test_order_is_kept_and_duplicates_are_equal(both: dict[str, LLM2Vec], variant: str) -> None:
    encoder = both[variant]
    got = encoder.encode(TEXTS, convert_to_numpy=True)
    assert got.shape == (len(TEXTS), 32) and got.dtype == np.float32
    for row, text in enumerate(TEXTS):
        close(got[row], encoder.encode([text])[0])
    np.testing.assert_array_equal(got[1], got[4])
    close(encoder.encode(TEXTS[::-1]), got[::-1])
    distinct = np.unique(got.round(3), axis=0)
    assert len(distinct) == len(set(TEXTS))


def test_a_single_string_gives_one_vector(both: dict[str, LLM2Vec]) -> None:
    vector = both["bi"].encode("dog")
    assert vector.shape == (32,) and vector.dtype == torch.float32
    np.testing.assert_array_equal(vector, both["bi"].encode(["dog"])[0])


def test_nothing_gives_no_rows(both: dict[str, LLM2Vec]) -> None:
    for name in ("uni", "bi"):
        got = both[name].encode_poolings([])
        assert {p: v.shape for p, v in got.items()} == dict.fromkeys(POOLINGS, (0, 32))
    assert both["bi"].encode([], convert_to_numpy=True).dtype == np.float32


def test_any_iterable_of_texts_and_pairs_will_do(both: dict[str, LLM2Vec]) -> None:
    encoder = both["bi"]
    expected = encoder.encode(["a dog", "a fox"])
    np.testing.assert_array_equal(encoder.encode(text for text in ("a dog", "a fox")), expected)
    np.testing.assert_array_equal(encoder.encode(np.array(["a dog", "a fox"])), expected)
    pairs = [["", "a dog"], ("", "a fox")]
    np.testing.assert_array_equal(encoder.encode(pairs), expected)
    mixed = encoder.encode(["a dog", (INSTRUCTION, "a fox"), [f" {INSTRUCTION}\n", "a fox"]])
    close(mixed[0], expected[0])
    np.testing.assert_array_equal(mixed[1], mixed[2])
    assert np.abs(mixed[1] - expected[1]).max() > 0.01


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (None, "NoneType"),
        (7, "int"),
        (1.5, "float"),
        (b"bytes", "bytes"),
        (("a", "b", "c"), "tuple"),
        (["a"], "list"),
        ([], "list"),
        (["a", None], "list"),
        ((INSTRUCTION, 7), "tuple"),
        ({"text": "a"}, "dict"),
    ],
)
def test_what_is_no_text_is_named(both: dict[str, LLM2Vec], item: object, kind: str) -> None:
    with pytest.raises(TypeError, match=f"item 2 is {kind}.*instruction, text"):
        both["bi"].encode(["fine", ["also", "fine"], item])
    with pytest.raises(TypeError, match=f"item 0 is {kind}"):
        both["bi"].encode_poolings([item])


# --------------------------------------------------------------------------- odd texts
@pytest.mark.parametrize("variant", ["uni", "bi", "echo"])
def test_odd_texts_are_encoded_each_for_itself(make_encoder: MakeEncoder, variant: str) -> None:
    encoder = make_encoder(variant)
    got = encoder.encode_poolings(ODD)
    for vectors in got.values():
        assert np.isfinite(vectors).all() and (np.abs(vectors).max(1) > 0).all()
    for row, text in enumerate(ODD):
        for pooling, alone in encoder.encode_poolings([text]).items():
            close(got[pooling][row], alone[0])
    with_bos_less = make_encoder(variant, add_bos=False).encode(ODD)
    assert np.isfinite(with_bos_less).all()


def test_lone_surrogates_become_the_replacement_character(both: dict[str, LLM2Vec]) -> None:
    encoder = both["bi"]
    given_, read = ["\ud800", "x\udc00y", "\ud83d\ude00", "\ufeffa"], ["�", "x�y", "😀", "\ufeffa"]
    np.testing.assert_array_equal(encoder.encode(given_), encoder.encode(read))
    np.testing.assert_array_equal(
        encoder.encode_poolings([["\udfff:", "dog"]])["mean"], encoder.encode([["�:", "dog"]])
    )


@given(st.lists(anything | st.tuples(anything, anything), min_size=1, max_size=6))
@settings(max_examples=40)
def test_any_texts_come_back_in_order(both: dict[str, LLM2Vec], items: list[object]) -> None:
    for encoder in both.values():
        got = encoder.encode(items)
        assert got.shape == (len(items), 32) and np.isfinite(got).all()
        for row, item in enumerate(items):
            close(got[row], encoder.encode([item])[0])


def test_long_texts_are_truncated(make_encoder: MakeEncoder) -> None:
    """By whole words to 400 tokens, then prompt and all to max_length."""
    encoder = make_encoder("bi")
    sizes = [len(t.ids) for t in encoder.tokenize([("", "fox " * 900), ("", "z" * 900)], True)]
    assert 395 <= sizes[0] <= 402 and sizes[1] == 512
    short = make_encoder("bi", max_length=16)
    assert {len(t.ids) for t in short.tokenize([(INSTRUCTION, "fox " * 900)], True)} == {16}
    np.testing.assert_array_equal(short.encode("fox " * 50), short.encode("fox " * 900))


# --------------------------------------------------------------------------- batching
@pytest.mark.parametrize("variant", ["uni", "bi", "echo"])
def test_the_batch_makes_no_difference(make_encoder: MakeEncoder, variant: str) -> None:
    encoder = make_encoder(variant)
    pairs = [[INSTRUCTION, text] for text in TEXTS] + [["", "fox " * 40]]
    together = encoder.encode_poolings(pairs)
    alone = encoder.encode_poolings(pairs, batch_size=1)
    encoder.max_tokens = 20
    small = encoder.encode_poolings(pairs)
    for pooling in POOLINGS:
        close(alone[pooling], together[pooling])
        close(small[pooling], together[pooling])


@pytest.mark.parametrize("variant", ["uni", "bi", "echo"])
@pytest.mark.parametrize("max_length", [12, 512])
def test_texts_in_portions_come_back_as_if_all_at_once(
    make_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch, variant: str, max_length: int
) -> None:
    """Tokens are kept for one portion at a time, also of texts that lose a token to EOS."""
    encoder = make_encoder(variant, max_length=max_length)
    pairs = [["", "abcdefghijklmnop"[:n]] for n in range(3, 15)]
    pairs += [[INSTRUCTION, t] for t in TEXTS]
    expected = encoder.encode_poolings(pairs)
    tokenize, sizes = encoder.tokenize, []
    monkeypatch.setattr(encoder_module, "CHUNK", 30)
    monkeypatch.setattr(
        encoder, "tokenize", lambda part, eos=False: sizes.append(len(part)) or tokenize(part, eos)
    )
    got = encoder.encode_poolings(pairs)
    for pooling in POOLINGS:
        close(got[pooling], expected[pooling])
    assert len(sizes) > 5 and max(sizes) < 11


# --------------------------------------------------------------------------- poolings
@pytest.mark.parametrize("variant", ["uni", "bi", "echo"])
@pytest.mark.parametrize("max_length", [12, 512])
def test_no_vector_depends_on_what_is_asked_for_beside_it(
    make_encoder: MakeEncoder, variant: str, max_length: int
) -> None:
    """Also at max_length, where the appended EOS takes a token's place."""
    encoder = make_encoder(variant, max_length=max_length)
    texts = [*TEXTS, *("abcdefghijklmnop"[:n] for n in range(6, 15))]
    sizes = {len(t.ids) for t in encoder.tokenize([("", t) for t in texts])}
    assert (max_length == 12) == (max_length in sizes)
    together = encoder.encode_poolings(texts)
    assert set(together) == set(POOLINGS)
    for pooling in POOLINGS:
        close(encoder.encode_poolings(texts, [pooling])[pooling], together[pooling])
    for pair in (("eos", "mean"), ("mean", "weighted_mean")):
        got = encoder.encode_poolings(texts, pair)
        assert list(got) == list(dict.fromkeys(got)) and set(got) == set(pair)
        for pooling in pair:
            close(got[pooling], together[pooling])


@pytest.mark.parametrize(
    ("variant", "poolings", "passes"),
    [
        ("uni", POOLINGS, 1),  # no earlier state feels EOS
        ("uni", ("mean", "weighted_mean"), 1),
        ("uni", ("eos",), 1),
        ("echo", POOLINGS, 1),
        ("bi", POOLINGS, 2),  # every state feels EOS
        ("bi", ("mean", "weighted_mean"), 1),
        ("bi", ("eos",), 1),
        ("bi", ("eos", "mean"), 2),
    ],
)
def test_poolings_share_a_pass_where_they_may(
    make_encoder: MakeEncoder, variant: str, poolings: tuple[str, ...], passes: int
) -> None:
    encoder = make_encoder(variant)
    encoder.encode_poolings(TEXTS[:1], poolings)
    assert encoder.counter.passes == passes


def test_eos_moves_the_other_states_of_a_bidirectional_model_alone(
    both: dict[str, LLM2Vec],
) -> None:
    """Why `bi` needs its second pass: pooled beside EOS, its mean would be another."""
    for name, same in (("uni", True), ("bi", False)):
        encoder = both[name]
        (plain,), (ended,) = (encoder.tokenize([("", TEXTS[0])], eos) for eos in (False, True))
        assert ended.ids[-1] == encoder.tokenizer.eos_token_id
        gap = np.abs(states_of(encoder, ended.ids)[1:-1] - states_of(encoder, plain.ids)[1:])
        assert bool(gap.max() < 1e-5) is same


def test_the_pooling_of_encode_is_the_one_that_was_chosen(make_encoder: MakeEncoder) -> None:
    for name, canonical in (("mean", "mean"), ("weighted_mean", "weighted_mean"),
                            ("eos", "eos"), ("eos_token", "eos")):  # fmt: skip
        encoder = make_encoder("uni", pooling_mode=name)
        assert encoder.pooling == canonical
        expected = encoder.encode_poolings(TEXTS, [name])
        assert list(expected) == [canonical]
        np.testing.assert_array_equal(encoder.encode(TEXTS), expected[canonical])


def test_unknown_poolings_are_refused(make_encoder: MakeEncoder) -> None:
    for wrong in ("cls", "none", ""):
        with pytest.raises(UnknownNameError, match="eos, mean, weighted_mean"):
            make_encoder("uni", pooling_mode=wrong)
        with pytest.raises(UnknownNameError, match="eos, mean, weighted_mean"):
            make_encoder("uni").encode_poolings(TEXTS, ["mean", wrong])


@pytest.mark.parametrize("max_length", [0, -1, 2])
def test_a_max_length_without_room_is_refused(make_encoder: MakeEncoder, max_length: int) -> None:
    with pytest.raises(SettingError, match=f"max_length {max_length}"):
        make_encoder("uni", max_length=max_length)


def test_a_tokenizer_without_eos_has_no_eos_pooling(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder("bi")
    encoder.tokenizer.eos_token = None
    with pytest.raises(SettingError, match=r"no EOS token. Valid: mean, weighted_mean\."):
        encoder.encode_poolings(TEXTS, ["mean", "eos"])
    with pytest.raises(SettingError, match="pooling 'eos'"):
        LLM2Vec(encoder.backbone, encoder.tokenizer, "eos_token")
    assert set(encoder.encode_poolings(TEXTS)) == {"mean", "weighted_mean"}


@pytest.mark.parametrize("eos", [True, False])
def test_a_tokenizer_without_padding_will_do(make_encoder: MakeEncoder, eos: bool) -> None:
    encoder = make_encoder("bi")
    expected = encoder.encode(TEXTS)
    encoder.tokenizer.pad_token = None
    encoder.tokenizer.eos_token = "</s>" if eos else None
    again = LLM2Vec(encoder.backbone, encoder.tokenizer, model=encoder.model)
    assert again.tokenizer.pad_token_id is None
    np.testing.assert_array_equal(again.encode(TEXTS), expected)


# --------------------------------------------------------------------------- counting
@pytest.mark.parametrize("variant", ["uni", "bi"])
def test_the_counter_counts_what_runs(make_encoder: MakeEncoder, variant: str) -> None:
    encoder = make_encoder(variant)
    encoder.encode([*TEXTS, *TEXTS])
    sizes = [len(t.ids) for t in encoder.tokenize([("", text) for text in dict.fromkeys(TEXTS)])]
    assert encoder.counter.tokens == sum(sizes)  # each text once, however often it is given
    assert encoder.counter.padding == max(sizes) * len(sizes) - sum(sizes)
    assert encoder.counter.passes == 1
    encoder.encode(TEXTS, batch_size=1)
    assert encoder.counter.tokens == 2 * sum(sizes)
    assert encoder.counter.passes == 1 + len(sizes)
    encoder.encode(TEXTS, batch_size=2)
    assert encoder.counter.passes == 1 + len(sizes) + 3


def test_texts_without_padding_leave_none_in_the_counter(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder("bi")
    encoder.encode(["dog", "fox", "cat"], batch_size=1)
    assert encoder.counter.padding == 0 and encoder.counter.passes == 3


# --------------------------------------------------------------------------- prompts at work
def test_a_chat_format_wraps_every_text(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder("bi", chat_of="mistral-7b")
    (tokens,) = encoder.tokenize([(INSTRUCTION, "a dog")])
    assert encoder.tokenizer.decode(tokens.ids) == f"<s>[INST] {INSTRUCTION} a dog [/INST]"


def test_echo_runs_the_text_twice(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder("echo")
    (tokens,) = encoder.tokenize([("", "a dog")])
    assert encoder.tokenizer.decode(tokens.ids).count("a dog") == 2


# --------------------------------------------------------------------------- loading
def test_from_pretrained_switches_attention(tiny_llama_dir: Path) -> None:
    bi = LLM2Vec.from_pretrained(tiny_llama_dir, device="cpu", pooling_mode="eos_token")
    uni = LLM2Vec.from_pretrained(str(tiny_llama_dir), enable_bidirectional=False, device="cpu")
    check_attention(bi.backbone, True)
    check_attention(uni.backbone, False)
    assert (bi.variant.name, uni.variant.name) == ("bi", "uni")
    assert (bi.pooling, uni.pooling) == ("eos", "mean")
    assert bi.adapters == () and bi.max_length == 512 and bi.attention_implementation == "sdpa"
    causal = uni.encode(TEXTS, convert_to_numpy=True)
    assert np.abs(bi.encode_poolings(TEXTS)["mean"] - causal).max() > 0.01


def test_from_pretrained_gives_float32_in_any_dtype(tiny_llama_dir: Path) -> None:
    half = LLM2Vec.from_pretrained(tiny_llama_dir, dtype="bfloat16", device="cpu")
    full = LLM2Vec.from_pretrained(tiny_llama_dir, device="cpu")
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    got, expected = half.encode(["The quick brown fox"]), full.encode(["The quick brown fox"])
    assert got.dtype == torch.float32
    assert 0 < (got - expected).abs().max() < 0.5


def test_from_pretrained_refuses_what_cannot_be_switched(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import MambaConfig, MambaModel

    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
    monkeypatch.setattr(
        encoder_module, "load_backbone", lambda *_, **__: (MambaModel(config), None)
    )
    with pytest.raises(AttentionError, match="MambaModel"):
        LLM2Vec.from_pretrained(tiny_llama_dir)


def test_load_encoder_lists_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'smolm2-135m'. Did you mean"):
        load_encoder("smolm2-135m", "bi")
    with pytest.raises(UnknownNameError, match=r"unknown variant 'bidi'.*bi-mntp-simcse"):
        load_encoder("smollm2-135m", "bidi")
