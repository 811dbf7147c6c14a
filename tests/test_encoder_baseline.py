"""Encoder baselines: their own pooling, CLS and SEP included, and no instruction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from llm2vec import LLM2Vec
from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.registry import MODELS, VARIANTS


def tiny_bert(model_name: str) -> LLM2Vec:
    """A random BERT whose tokenizer puts CLS and SEP around a text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "fox", "the", "quick", "find", ":"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=300, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = BertModel(config).eval()
    return LLM2Vec(backbone, tokenizer, model=MODELS[model_name], variant=VARIANTS["encoder"])


@torch.no_grad()
def states_of(baseline: LLM2Vec, ids: list[int]) -> np.ndarray:
    return baseline.backbone(torch.tensor([ids])).last_hidden_state[0].numpy()


def test_a_baseline_keeps_its_own_pooling_with_cls_and_sep() -> None:
    texts = ["the quick fox", "dog", ""]
    for name in ("minilm-l6", "bert-base", "bert-base-simcse"):
        baseline = tiny_bert(name)
        got = baseline.encode(texts)
        for row, text in enumerate(texts):
            ids = baseline.tokenizer(text)["input_ids"]
            assert (ids[0], ids[-1]) == (2, 3)
            states = states_of(baseline, ids)
            expected = states[0] if name == "bert-base-simcse" else states.mean(0)
            if name == "minilm-l6":
                expected = expected / np.linalg.norm(expected)
            np.testing.assert_allclose(got[row], expected, rtol=0, atol=1e-5)


def test_a_baseline_takes_no_instruction_and_no_other_pooling() -> None:
    baseline = tiny_bert("minilm-l6")
    assert baseline.pooling == "none" and baseline.poolings == ("none",)
    np.testing.assert_array_equal(
        baseline.encode([["find :", "the dog"], ["fox", ""]]), baseline.encode(["the dog", ""])
    )
    assert list(baseline.encode_poolings(["dog"])) == ["none"]
    with pytest.raises(UnknownNameError, match="pooling of an encoder baseline 'mean'"):
        baseline.encode_poolings(["dog"], ["mean"])


def test_a_baseline_is_not_shortened_by_words() -> None:
    """Its own limit holds: 256 tokens of the model card, CLS and SEP among them."""
    baseline = tiny_bert("minilm-l6")
    (tokens,) = baseline.tokenize([("", "dog " * 900)])
    assert (len(tokens.ids), tokens.ids[0], tokens.ids[-1]) == (256, 2, 3)


@pytest.mark.parametrize("name", ["minilm-l6", "bert-base", "bert-base-simcse"])
def test_a_saved_baseline_comes_back(name: str, tmp_path: Path) -> None:
    baseline = tiny_bert(name)
    baseline.save(tmp_path / "saved")
    again = LLM2Vec.from_pretrained(tmp_path / "saved", device="cpu")
    assert (again.variant, again.pooling) == (VARIANTS["encoder"], "none")
    for field in ("kind", "own_pooling", "normalize"):
        assert getattr(again.model, field) == getattr(MODELS[name], field)
    assert again.max_length == baseline.max_length
    texts = ["the quick fox", ["find :", "dog"], "dog " * 280]
    np.testing.assert_array_equal(again.encode(texts), baseline.encode(texts))
    file = tmp_path / "saved" / "llm2vec_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"own_pooling": "last"}))
    with pytest.raises(SettingError, match=r"own_pooling 'last'. Valid: mean, cls"):
        LLM2Vec.from_pretrained(tmp_path / "saved")


def test_a_local_copy_of_a_baseline_is_that_baseline(tmp_path: Path) -> None:
    baseline = tiny_bert("minilm-l6")
    baseline.save(tmp_path, save_config=False)
    named = LLM2Vec.from_pretrained(tmp_path, base_model="minilm-l6", device="cpu")
    file = tmp_path / "config.json"
    hub_id = MODELS["minilm-l6"].hub_id
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_name_or_path": hub_id}))
    marked = LLM2Vec.from_pretrained(tmp_path, device="cpu")
    by_hand = LLM2Vec(marked.backbone, marked.tokenizer)
    for copy in (named, marked, by_hand):
        assert (copy.variant.name, copy.max_length) == ("encoder", 256)
        np.testing.assert_array_equal(copy.encode(["the fox"]), baseline.encode(["the fox"]))
