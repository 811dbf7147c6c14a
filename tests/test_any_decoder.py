"""Every family of decoders through the whole recipe, and the table in docs/architectures.md.

PYTHONPATH=.:tests .venv/bin/python tests/test_any_decoder.py      # writes the table
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from training_help import TEXTS, write_texts
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llm2vec import LLM2Vec
from llm2vec.architectures import lora_for
from llm2vec.attention import check_attention, set_attention
from llm2vec.convert import Settings, convert
from llm2vec.export import cosines
from llm2vec.heads import check_head, head_of
from llm2vec.loading import load_backbone, merge_adapter
from llm2vec.lora import add_lora
from llm2vec.simcse import SimCSEModel, set_attention_dropout

DOCS = ROOT / "docs" / "architectures.md"
MARKS = "<!-- architectures -->", "<!-- /architectures -->"
HEADER = (
    "| `model_type` | Attention | Logits | LoRA on | Dropout | Export |\n|---|---|---|---|---|---|"
)
FAST = Settings(
    mntp_steps=1, simcse_steps=1, batch_size=4, block_size=16, learning_rate=1e-2,
    dtype="float32", device="cpu", scores=False,
)  # fmt: skip
COMMON = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXTURES: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "olmoe": EXPERTS,
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "phi3": {},
    "olmo2": {},
    "gpt_neox": {},
    "gpt2": {},
    "smollm3": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "granite": {"logits_scaling": 4.0},
    "starcoder2": {},
    "stablelm": {},
    "cohere": {},
    "phi": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "xglm": {
        "d_model": 32,
        "attention_heads": 4,
        "num_layers": 2,
        "ffn_dim": 64,
        "init_std": 0.3,
    },
    "biogpt": {},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    **MIXTURES,
}


def make_folder(family: str, folder: Path) -> Path:
    """A tiny random decoder of the family with the tiny tokenizer, saved."""
    tokenizer = tiny_tokenizer(add_bos=True)
    config = CONFIG_MAPPING[family](vocab_size=len(tokenizer), **COMMON | FAMILIES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --------------------------------------------------------------------------- facts
def logits(folder: Path) -> str:
    """What follows the linear layer, checked against the model's own logits."""
    model, _ = load_backbone(folder, head=True, device="cpu")
    check_head(model)
    head = head_of(model)
    parts = [f"x {head.factor:g}"] if head.factor != 1 else []
    return ", ".join([*parts, *([f"soft cap {head.cap:g}"] if head.cap else [])]) or "as they are"


def dropout(folder: Path) -> str:
    """Whether two views of a text differ with dropout on the attention weights alone."""
    backbone, _ = load_backbone(folder, device="cpu")
    set_attention(backbone, True)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # that of residuals and embeddings
        for name in ("dropout", "residual_dropout", "embedding_dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    set_attention_dropout(backbone, 0.3)
    lora = replace(lora_for(backbone.config.model_type), dropout=0.0)
    stage = SimCSEModel(add_lora(backbone, lora, 0)).train()
    ids = torch.arange(5, 25).repeat(2, 1)
    views = stage(ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool())
    return "LoRA's alone" if torch.allclose(views[0], views[1], atol=1e-4) else "yes"


def quick(family: str, folder: Path) -> list[str]:
    """The cells that need no training."""
    encoder = LLM2Vec.from_pretrained(folder, device="cpu")
    check_attention(encoder.backbone, True)
    set_attention(encoder.backbone, False)
    check_attention(encoder.backbone, False)
    return [
        f"`{family}`",
        encoder.attention_implementation,
        logits(folder),
        " ".join(f"`{name}`" for name in lora_for(family).target_modules),
        dropout(folder),
    ]


def recipe(folder: Path, work: Path) -> str:
    """`llm2vec convert`, then its adapters by hand: load, encode, save; the last cell."""
    out = convert(str(folder), write_texts(work), work / "encoder", FAST)
    adapters = [work / "encoder.training" / stage for stage in ("mntp", "mntp-simcse")]
    plain = LLM2Vec.from_pretrained(folder, device="cpu")
    trained = LLM2Vec.from_pretrained(folder, extra_model_name_or_path=adapters, device="cpu")
    check_attention(trained.backbone, True)
    vectors = trained.encode(TEXTS[:5], convert_to_numpy=True)
    assert np.isfinite(vectors).all()
    assert np.abs(vectors - plain.encode(TEXTS[:5], convert_to_numpy=True)).max() > 1e-4
    for text, vector in zip(TEXTS[:5], vectors, strict=True):
        alone = trained.encode(text, convert_to_numpy=True)
        np.testing.assert_allclose(alone, vector, rtol=0, atol=1e-3 * np.abs(vector).max())
    trained.save(work / "saved")
    for saved in (work / "saved", out):
        again = LLM2Vec.from_pretrained(saved, device="cpu")
        np.testing.assert_allclose(again.encode(TEXTS[:5]), vectors, rtol=0, atol=1e-4)
    theirs = SentenceTransformer(str(out), device="cpu")
    assert cosines(vectors, theirs.encode(TEXTS[:5])).min() > 0.9999
    kept = theirs[0].auto_model.config._attn_implementation
    return "yes" if kept == plain.attention_implementation else f"with {kept} attention"


def in_the_docs(family: str) -> list[str]:
    """Cells of a family's line in the table."""
    lines = [x for x in DOCS.read_text().splitlines() if x.startswith(f"| `{family}` |")]
    assert len(lines) == 1, "write the table anew, see the top of this file"
    return lines[0].strip("| ").split(" | ")


# --------------------------------------------------------------------------- tests
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_logits_and_dropout(family: str, tmp_path: Path) -> None:
    assert quick(family, make_folder(family, tmp_path)) == in_the_docs(family)[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_recipe(family: str, tmp_path: Path) -> None:
    assert recipe(make_folder(family, tmp_path / "model"), tmp_path) == in_the_docs(family)[-1]


def test_the_table_lists_the_families_and_nothing_else() -> None:
    text = DOCS.read_text()
    table = text[text.index(MARKS[0]) : text.index(MARKS[1])].splitlines()
    named = [line.split("`")[1] for line in table if line.startswith("| `")]
    assert named == ["model_type", *FAMILIES]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "falcon", "opt", "phi3"])
def test_an_adapter_trained_with_the_head_fits_every_inner_model(
    family: str, tmp_path: Path
) -> None:
    """The inner model is called transformer, gpt_neox, model, ... by its family."""
    folder = make_folder(family, tmp_path / "model")
    whole, _ = load_backbone(folder, head=True, device="cpu")
    names = list(lora_for(family).target_modules)
    config = LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = get_peft_model(whole, config).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = whole.base_model(ids).last_hidden_state
        merged = merge_adapter(load_backbone(folder, device="cpu")[0], tmp_path / "adapter")
        got = merged(ids).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    assert (got - load_backbone(folder, device="cpu")[0](ids).last_hidden_state).abs().max() > 0.01


def write_table() -> None:
    """Run every family and put the table between the marks."""
    lines = [HEADER]
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as work:
            folder = make_folder(family, Path(work) / "model")
            cells = [*quick(family, folder), recipe(folder, Path(work))]
        lines.append(f"| {' | '.join(cells)} |")
    text = DOCS.read_text()
    before, after = text[: text.index(MARKS[0])], text[text.index(MARKS[1]) :]
    DOCS.write_text(before + "\n".join([MARKS[0], "", *lines, ""]) + "\n" + after)


if __name__ == "__main__":
    write_table()
