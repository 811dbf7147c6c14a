"""Decoders that the last states alone cannot judge: hybrids, experts, ALiBi, half precision."""

import pytest
import torch
from test_attention import tiny
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaModel

from llm2vec import attention
from llm2vec.attention import check_attention, moved_positions, set_attention, states
from llm2vec.errors import AttentionError

GATED_DELTA = {
    "num_hidden_layers": 4, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
ROUTED = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
HYBRIDS: dict[str, tuple[str, dict[str, object]]] = {
    "lfm2": ("1 conv", {"layer_types": ["full_attention", "conv"]}),
    "qwen3_next": ("3 linear_attention", GATED_DELTA | ROUTED),
    "qwen3_5_text": ("3 linear_attention", GATED_DELTA),
    "jamba": (
        "1 linear_attention",
        {"attn_layer_period": 2, "attn_layer_offset": 0, "num_experts": 2, "mamba_d_state": 8,
         "mamba_dt_rank": 4},
    ),
    "falcon_h1": ("2 hybrid", MAMBA2 | {"mamba_d_ssm": 64, "head_dim": 8}),
    "bamba": ("1 linear_attention", MAMBA2 | {"attn_layer_indices": [0]}),
    "granitemoehybrid": (
        "1 linear_attention",
        MAMBA2 | {"layer_types": ["attention", "mamba"], "num_local_experts": 0},
    ),
    "recurrent_gemma": (
        "2 linear_attention",
        {"num_hidden_layers": 3, "lru_width": 32, "head_dim": 8},
    ),
}  # fmt: skip
EXPERTS: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": ROUTED,
    "qwen3_moe": ROUTED | {"head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "jetmoe": {},
}
ALIBI: dict[str, dict[str, object]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "falcon": {"alibi": True},
}


def make(
    family: str, extra: dict[str, object], dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    layers = extra.get("num_hidden_layers", 2)
    others = {name: value for name, value in extra.items() if name != "num_hidden_layers"}
    implementation = "eager" if family in ("bloom", "gpt_oss", "mpt") else "sdpa"
    return tiny(family, implementation, layers, **others).to(dtype)


def check_refused(model: PreTrainedModel, reason: str) -> None:
    """Bidirectional it is refused and left as it was; causal it passes."""
    set_attention(model, False)
    for switch in (set_attention, check_attention):
        with pytest.raises(AttentionError, match=rf"{type(model).__name__}.*{reason}.*Use a deco"):
            switch(model, True)
    assert model.config.is_causal is True
    check_attention(model, False)


# --------------------------------------------------------------------------- hybrids
@pytest.mark.parametrize("family", HYBRIDS)
def test_a_hybrid_is_refused_by_the_names_of_its_layers(family: str) -> None:
    kind, extra = HYBRIDS[family]
    check_refused(make(family, extra), kind)


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_hybrid_is_refused_by_its_modules(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_one_sided_by_name", lambda _config: "")
    check_refused(make(family, HYBRIDS[family][1]), "recurrent or convolutional part")


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("lfm2", {"layer_types": ["full_attention"] * 2}),
        (
            "granitemoehybrid",
            MAMBA2 | {"layer_types": ["attention"] * 2, "num_local_experts": 0},
        ),
        ("cohere2", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    ],
)
def test_attention_in_every_layer_is_switched(family: str, extra: dict[str, object]) -> None:
    model = make(family, extra)
    for bidirectional in (True, False):
        set_attention(model, bidirectional)
        check_attention(model, bidirectional)


def test_a_convolution_beside_the_layers_is_no_reason() -> None:
    """A decoder for speech or images convolves before its text layers."""
    model = tiny("llama")
    model.tower = torch.nn.ModuleDict({"conv": torch.nn.Conv1d(4, 4, 3)})
    set_attention(model, True)
    check_attention(model, True)


# --------------------------------------------------------------------------- ALiBi
@pytest.mark.parametrize("family", ALIBI)
def test_alibi_is_refused(family: str) -> None:
    check_refused(make(family, ALIBI[family]), "ALiBi")


def test_alibi_as_transformers_has_it_is_no_distance() -> None:
    """Why it is refused: of equal tokens, each attends most to the last. Else it can be served."""
    model = tiny("bloom", "eager", n_layer=1, n_head=4)
    model.config.is_causal = False
    ids = torch.full((1, 8), 7)
    weights = model(ids, output_attentions=True, use_cache=False).attentions[0][0, 0]
    assert weights.argmax(-1).tolist() == [7] * 8


# --------------------------------------------------------------------------- rounding
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_switched_in_both_directions(family: str, dtype: torch.dtype) -> None:
    """An expert's product rounds by how many tokens it gets: no leak."""
    model = make(family, EXPERTS[family], dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1.0  # that of padding; a router may flip
    for bidirectional in (False, True, False):
        set_attention(model, bidirectional)
        check_attention(model, bidirectional, tolerance)
        with pytest.raises(AttentionError, match="earlier positions, expected"):
            check_attention(model, not bidirectional, tolerance)


def test_rounding_of_experts_is_there() -> None:
    """Else the tolerance can go."""
    model = make("mixtral", EXPERTS["mixtral"])
    one = torch.arange(3, 15)[None]
    other = one.clone()
    other[0, -1] = 40
    assert (states(model, one) != states(model, other))[0, :-1].any()
    assert not moved_positions(model, one, other).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_unit_in_the_last_place_is_rounding(dtype: torch.dtype) -> None:
    """A GPU's products in half precision round as a CPU's do in float32."""
    model = make("mixtral", EXPERTS["mixtral"], dtype)

    def rounded(_module: object, _args: object, output: object) -> object:
        signs = torch.randn(output.last_hidden_state.shape).sign().to(dtype)
        output.last_hidden_state.mul_(1 + torch.finfo(dtype).eps * signs)
        return output

    model.register_forward_hook(rounded)
    set_attention(model, False)
    check_attention(model, False, tolerance=1.0)


@pytest.mark.parametrize(
    ("family", "dtype", "leak"),
    [
        ("llama", torch.float32, 1e-4),
        ("mixtral", torch.float32, 1e-4),
        ("llama", torch.bfloat16, 0.02),
        ("mixtral", torch.bfloat16, 0.1),
        ("mixtral", torch.float16, 0.01),
    ],
)
def test_a_small_leak_is_found(family: str, dtype: torch.dtype, leak: float) -> None:
    model = make(family, EXPERTS.get(family, {}), dtype)

    def spill(_module: object, _args: object, output: object) -> object:
        output.last_hidden_state[:, -3] += leak * output.last_hidden_state[:, -1]
        return output

    model.register_forward_hook(spill)
    with pytest.raises(AttentionError, match="1 of 11"):
        check_attention(model, False)


class Noisy(LlamaModel):
    """Causal whatever it is told, with other rounding at every pass."""

    def forward(self, *args: object, **kwargs: object) -> object:
        self.config.is_causal = True
        for layer in self.layers:
            layer.self_attn.is_causal = True
        output = super().forward(*args, **kwargs)
        output.last_hidden_state.mul_(1 + 1e-6 * torch.randn(output.last_hidden_state.shape))
        return output


def test_rounding_does_not_pass_for_attention() -> None:
    model = Noisy(tiny("llama").config).eval()
    with pytest.raises(AttentionError, match="0 of 5"):
        set_attention(model, True)
    set_attention(model, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_huge_channel_hides_no_move(dtype: torch.dtype) -> None:
    """As in trained decoders, whose first token is an attention sink."""
    model = tiny("gpt2", layers=6, initializer_range=0.02)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 0] = 20.0
    set_attention(model.to(dtype), True)
    check_attention(model, True, tolerance=0.1)


def test_a_state_that_is_not_finite_in_one_of_two_inputs_is_found() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[40] = float("nan")  # 8 + 64 // 2, the changed token
    with pytest.raises(AttentionError, match="not finite"):
        set_attention(model, False)
