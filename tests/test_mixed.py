"""``bfloat16-mixed``: which part is rounded, which is not, and what it is called."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2Model

from llm2vec import LLM2Vec, estimates
from llm2vec.batching import iterate
from llm2vec.errors import SettingError
from llm2vec.export import export
from llm2vec.loading import load_backbone
from llm2vec.mixed import MIXED, MixedLinear, set_precision
from llm2vec.registry import DTYPES

TEXTS = ["The quick brown fox", "a dog", "the other dog sleeps"]


@pytest.fixture
def mixed(tiny_llama_dir: Path) -> LLM2Vec:
    return LLM2Vec.from_pretrained(tiny_llama_dir, dtype=MIXED, device="cpu")


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_linear_layers_alone_are_rounded(mixed: LLM2Vec) -> None:
    found = {name: p.dtype for name, p in mixed.backbone.named_parameters()}
    for name, dtype in found.items():
        assert dtype == (torch.bfloat16 if "_proj" in name else torch.float32), name
    assert sum("_proj" in name for name in found) == 14
    (batch, *_) = iterate(mixed.backbone, [[5, 6, 7]], pad_id=0, layers=True)
    assert {layer.dtype for layer in batch.layers} == {torch.float32}


def test_a_layer_multiplies_rounded_numbers_and_gives_back_the_type_it_got() -> None:
    layer = nn.Linear(8, 4).requires_grad_(False)
    states = torch.randn(3, 8)
    expected = nn.functional.linear(
        states.bfloat16().float(), layer.weight.bfloat16().float(), layer.bias.bfloat16().float()
    )
    set_precision(nn.Sequential(layer), MIXED)
    got = layer(states)
    assert got.dtype == torch.float32
    assert 0 < gap(got, expected) < 0.02 * float(expected.abs().max())  # the result is rounded too
    assert layer(states.bfloat16()).dtype == torch.bfloat16


def test_it_lies_nearer_to_float32_than_bfloat16_does(tiny_llama_dir: Path) -> None:
    """A token whose state is large, as that of an attention sink, costs bfloat16 the small ones."""
    vectors = {}
    for dtype in ("float32", "bfloat16", MIXED):
        encoder = LLM2Vec.from_pretrained(tiny_llama_dir, dtype=dtype, device="cpu")
        with torch.no_grad():
            encoder.backbone.embed_tokens.weight *= 100
        vectors[dtype] = encoder.encode(TEXTS)
    assert vectors[MIXED].dtype == torch.float32
    far, near = (gap(vectors[name], vectors["float32"]) for name in ("bfloat16", MIXED))
    assert 0 < near < far / 2


def test_adapters_are_merged_before_the_weights_are_rounded(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    plain, _ = load_backbone(tiny_llama_dir, device="cpu")
    torch.manual_seed(1)
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "up_proj"])
    get_peft_model(plain, config).save_pretrained(tmp_path)
    load = (tiny_llama_dir, tmp_path)
    whole = LLM2Vec.from_pretrained(*load, device="cpu").backbone.state_dict()
    rounded = LLM2Vec.from_pretrained(*load, dtype=MIXED, device="cpu").backbone.state_dict()
    for name, values in whole.items():
        torch.testing.assert_close(rounded[name], values.to(rounded[name].dtype), rtol=0, atol=0)


def test_every_name_of_a_dtype_is_known_everywhere(mixed: LLM2Vec, tiny_llama_dir: Path) -> None:
    assert MIXED in DTYPES
    assert estimates.BYTES.keys() == set(DTYPES)
    assert (mixed.precision, mixed.dtype) == (MIXED, torch.float32)
    for name in set(DTYPES) - {MIXED}:
        encoder = LLM2Vec.from_pretrained(tiny_llama_dir, dtype=name, device="cpu")
        assert encoder.precision == name
        assert not any(isinstance(module, MixedLinear) for module in encoder.backbone.modules())


def test_what_cannot_run_mixed_says_so(mixed: LLM2Vec, tmp_path: Path) -> None:
    backbone = GPT2Model(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=9))
    with pytest.raises(SettingError, match="GPT2Model has no linear layers"):
        set_precision(backbone, MIXED)
    with pytest.raises(SettingError, match="load the encoder in float32 to export it"):
        export(mixed, tmp_path / "out")
    with pytest.raises(SettingError, match=f"{MIXED}.*Valid: float32, bfloat16, float16"):
        load_backbone("smollm2-135m", dtype=MIXED)  # where nothing would turn it into one
