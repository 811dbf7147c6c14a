"""The attention switch, proven by leaks: which earlier states move when the last token changes."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaModel

from llm2vec.attention import check_attention, moved_positions, set_attention, states
from llm2vec.errors import AttentionError

DECODERS = ("llama", "mistral", "qwen2", "gpt_neox", "stablelm")
VOCABULARY = 64


def tiny(
    architecture: str, implementation: str = "sdpa", layers: int = 2, **extra: object
) -> PreTrainedModel:
    """A random backbone whose weights are large enough for attention to matter."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    config = CONFIG_MAPPING[architecture](**settings | extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(config, attn_implementation=implementation).eval()


@pytest.fixture(scope="module")
def backbone() -> Callable[[str, str], PreTrainedModel]:
    """`backbone(architecture, implementation)`, built once; leave it causal."""
    built: dict[tuple[str, str], PreTrainedModel] = {}

    def get(architecture: str, implementation: str = "sdpa") -> PreTrainedModel:
        key = (architecture, implementation)
        if key not in built:
            built[key] = tiny(*key)
        return built[key]

    return get


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_the_switch_works_in_both_directions_and_back(
    architecture: str, implementation: str
) -> None:
    model = tiny(architecture, implementation)
    ids = torch.arange(3, 14).unsqueeze(0)
    before = states(model, ids)
    check_attention(model, False)
    with pytest.raises(AttentionError, match="expected all"):
        check_attention(model, True)

    set_attention(model, True)
    check_attention(model, True)
    with pytest.raises(AttentionError, match="expected none"):
        check_attention(model, False)
    assert not torch.allclose(states(model, ids)[0, 0], before[0, 0], atol=1e-3)

    set_attention(model, False)
    check_attention(model, False)
    torch.testing.assert_close(states(model, ids), before, rtol=0, atol=0)


def test_a_new_model_is_causal_unless_told() -> None:
    check_attention(tiny("llama"), False)


def test_the_config_flag_alone_leaves_stablelm_causal_at_batch_size_one() -> None:
    """The bug that `set_attention` must not have: no padding, no mask, no bidirectionality."""
    model = tiny("stablelm")
    model.config.is_causal = False
    ids = torch.arange(3, 14).unsqueeze(0)
    other = ids.clone()
    other[0, -1] = 40
    assert not moved_positions(model, ids, other).any()
    with pytest.raises(AttentionError, match="stablelm"):
        check_attention(model, True)

    set_attention(model, True)
    assert moved_positions(model, ids, other).all()


def test_the_module_flags_alone_are_not_enough_either() -> None:
    """Masks are made from the config: a padded batch would stay causal."""
    model = tiny("llama")
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    with pytest.raises(AttentionError):
        check_attention(model, True)


@pytest.mark.parametrize(
    ("architecture", "reason"), [("mamba", "2 linear_attention"), ("rwkv", "0 of 5")]
)
def test_a_recurrent_model_is_refused(architecture: str, reason: str) -> None:
    sizes = {"num_key_value_heads": None, "attention_hidden_size": 32, "state_size": 8}
    model = tiny(architecture, "eager", **sizes)
    with pytest.raises(AttentionError, match=rf"{type(model).__name__}.*bidirectional.*{reason}"):
        set_attention(model, True)
    set_attention(model, False)  # causal it can be


class Stubborn(LlamaModel):
    """A decoder that quietly sets its flags back before every forward pass."""

    def forward(self, *args: object, **kwargs: object) -> object:
        self.config.is_causal = True
        for layer in self.layers:
            layer.self_attn.is_causal = True
        return super().forward(*args, **kwargs)


def test_a_model_that_ignores_the_flag_is_refused() -> None:
    model = Stubborn(tiny("llama").config).eval()
    with pytest.raises(AttentionError, match="Stubborn"):
        set_attention(model, True)


def test_meta_weights_are_switched_without_a_pass() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(tiny("llama").config)
    set_attention(model, True)
    assert model.config.is_causal is False
    assert all(layer.self_attn.is_causal is False for layer in model.layers)


def test_the_head_is_switched_with_its_backbone(tiny_llama) -> None:
    model = tiny_llama.model
    set_attention(model, True)
    check_attention(model, True)
    check_attention(model.model, True)


def test_the_check_runs_without_dropout_and_restores_training_mode() -> None:
    model = tiny("llama", attention_dropout=0.5)
    model.train()
    set_attention(model, True)
    check_attention(model, True)
    assert model.training
    model.eval()
    check_attention(model, True)
    assert not model.training


def test_a_sliding_window_reaches_to_both_sides_alike() -> None:
    model = tiny("mistral", layers=1, sliding_window=4)
    set_attention(model, True, verify=False)
    ids = torch.arange(3, 19).unsqueeze(0)
    other = ids.clone()
    other[0, 8] = 40
    moved = (states(model, ids) != states(model, other)).any(-1)[0].nonzero().flatten().tolist()
    reach = 8 - moved[0]
    assert reach in (3, 4)
    assert moved == list(range(8 - reach, 8 + reach + 1))


# --------------------------------------------------------------------------- broken on purpose
def test_a_leak_into_one_position_is_found() -> None:
    """A check of the first position alone would miss this one."""
    model = tiny("llama")

    def leak(_module: object, _args: object, output: object) -> object:
        output.last_hidden_state[:, -3] += 1e-3 * output.last_hidden_state[:, -1]
        return output

    model.register_forward_hook(leak)
    with pytest.raises(AttentionError, match="1 of 11"):
        check_attention(model, False)


def test_one_blind_position_is_found() -> None:
    model = tiny("llama")
    set_attention(model, True)

    def blind(_module: object, _args: object, output: object) -> object:
        output.last_hidden_state[:, 4] = 1.0
        return output

    model.register_forward_hook(blind)
    with pytest.raises(AttentionError, match=r"10 of 11.*expected all"):
        check_attention(model, True)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_attended_padding_is_found(bidirectional: bool) -> None:
    model = tiny("llama")
    set_attention(model, bidirectional)

    def see_padding(_module: object, args: object, kwargs: dict[str, torch.Tensor]) -> object:
        return args, kwargs | {"attention_mask": torch.ones_like(kwargs["input_ids"])}

    model.register_forward_pre_hook(see_padding, with_kwargs=True)
    with pytest.raises(AttentionError, match="differs from the row alone"):
        check_attention(model, bidirectional)


def test_not_a_number_passes_no_check() -> None:
    model = tiny("llama")
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    for bidirectional in (True, False):
        with pytest.raises(AttentionError, match="not finite"):
            set_attention(model, bidirectional)
        with pytest.raises(AttentionError):
            check_attention(model, bidirectional)


# --------------------------------------------------------------------------- property
@given(data=st.data(), length=st.integers(2, 12))
@settings(max_examples=30)
def test_who_feels_a_changed_token(
    backbone: Callable[..., PreTrainedModel], data: st.DataObject, length: int
) -> None:
    """Bidirectional: everybody; causal: the token itself and what follows it, nobody before."""
    model = backbone(data.draw(st.sampled_from(DECODERS)))
    token = st.integers(1, VOCABULARY - 1)
    ids = torch.tensor([data.draw(st.lists(token, min_size=length, max_size=length))])
    place = data.draw(st.integers(0, length - 1))
    other = ids.clone()
    other[0, place] = data.draw(token.filter(lambda t: t != int(ids[0, place])))

    def moved() -> list[bool]:
        return (states(model, ids) - states(model, other)).abs().amax(-1)[0].gt(0).tolist()

    assert moved() == [i >= place for i in range(length)]
    set_attention(model, True, verify=False)
    try:
        assert all(moved())
    finally:
        set_attention(model, False, verify=False)
