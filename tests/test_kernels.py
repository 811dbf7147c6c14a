"""Faster kernels on a CPU: the same numbers, only where they fit, and nothing left behind."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import AutoModel, GemmaConfig, MistralConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaMLP

from llm2vec import kernels
from llm2vec.batching import iterate
from llm2vec.kernels import GATED, LINEAR, faster_forwards, replaced
from llm2vec.mixed import MIXED, set_precision

SEQUENCES = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [3] * 9]
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
needs_onednn = pytest.mark.skipif(
    not kernels.works(torch.float32), reason="this torch has no oneDNN product in float32"
)


@pytest.fixture
def backbone(tiny_llama) -> nn.Module:
    return tiny_llama.model.model


@pytest.fixture
def fresh() -> Iterator[None]:
    """The check of the machine is made anew, before and after."""
    kernels.works.cache_clear()
    yield
    kernels.works.cache_clear()


def patched(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if "forward" in m.__dict__]


def states_of(backbone: nn.Module) -> torch.Tensor:
    batches = list(iterate(backbone, SEQUENCES, pad_id=0, max_tokens=1))
    return torch.cat([batch.hidden[0].float() for batch in batches])


# --------------------------------------------------------------------------- numbers
@needs_onednn
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("kind", [LINEAR, GATED])
def test_each_kind_gives_the_numbers_of_torch(
    backbone: nn.Module, dtype: torch.dtype, close: float, kind: str
) -> None:
    backbone.to(dtype)
    forwards = faster_forwards(backbone, (kind,))
    assert len(forwards) == (2 if kind == GATED else 14 * (dtype == torch.float32))
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        for module, forward in forwards.items():
            given = states.repeat(1, 1, 2) if getattr(module, "in_features", 32) == 64 else states
            expected, got = module(given), forward(given)
            assert got.dtype == dtype and got.shape == expected.shape
            torch.testing.assert_close(got, expected, rtol=0, atol=close * float(expected.std()))


@needs_onednn
def test_a_bias_and_states_that_are_not_contiguous_are_taken() -> None:
    layer = nn.Linear(32, 48)
    states = torch.randn(5, 32, 2).transpose(1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(faster_forwards(layer)[layer](states), layer(states))


@needs_onednn
def test_mixed_layers_give_their_numbers(
    backbone: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_precision(backbone, MIXED)
    kinds = [type(module).__name__ for module in faster_forwards(backbone)]
    assert kinds == ["LlamaMLP"] * 2  # torch takes oneDNN for bfloat16 by itself
    got = states_of(backbone)
    monkeypatch.setattr("llm2vec.batching.faster_forwards", lambda _: {})
    expected = states_of(backbone)
    gap = float((got - expected).abs().max())
    assert 0 < gap < 0.02 * float(expected.abs().max())


# --------------------------------------------------------------------------- when
@needs_onednn
def test_the_loop_runs_them_and_leaves_nothing_behind(
    backbone: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = states_of(backbone)
    seen: list[int] = []
    backbone.register_forward_pre_hook(lambda *_: seen.append(len(patched(backbone))))
    for _batch in iterate(backbone, SEQUENCES, pad_id=0, max_tokens=8):
        assert patched(backbone) == []  # also while the caller has its turn
    assert set(seen) == {2 + 14}  # MLPs and linear layers
    monkeypatch.setattr("llm2vec.batching.faster_forwards", lambda _: {})
    torch.testing.assert_close(expected, states_of(backbone), rtol=0, atol=1e-5)


@needs_onednn
def test_an_error_within_leaves_nothing_behind(backbone: nn.Module) -> None:
    with pytest.raises(IndexError):  # a token that the table of embeddings does not hold
        list(iterate(backbone, [[10**6]], pad_id=0))
    assert patched(backbone) == []
    with pytest.raises(OSError), replaced(faster_forwards(backbone)):
        assert patched(backbone) != []
        raise OSError
    assert patched(backbone) == []


@needs_onednn
def test_threads_may_share_a_backbone(backbone: nn.Module) -> None:
    expected = states_of(backbone)
    with ThreadPoolExecutor(3) as pool:
        for got in pool.map(lambda _: states_of(backbone), range(12)):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert patched(backbone) == []


# --------------------------------------------------------------------------- which
@needs_onednn
@pytest.mark.parametrize(
    ("config", "gated"),
    [
        (MistralConfig(**TINY), 1),
        (Qwen2Config(**TINY), 1),
        (MistralConfig(**TINY, hidden_act="gelu"), 0),
        (GemmaConfig(**TINY, head_dim=8), 0),
    ],
    ids=["mistral", "qwen2", "gelu", "gemma"],
)
def test_an_mlp_is_known_by_what_it_computes(config, gated: int) -> None:
    backbone = AutoModel.from_config(config).eval()
    kinds = [type(module).__name__ for module in faster_forwards(backbone)]
    assert sum(kind.endswith("MLP") for kind in kinds) == gated
    assert kinds.count("Linear") == 7
    with torch.inference_mode():
        ids = torch.tensor([[5, 6, 7]])
        expected = backbone(ids).last_hidden_state
        with replaced(faster_forwards(backbone)):
            got = backbone(ids).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@needs_onednn
def test_an_mlp_of_another_form_keeps_its_own(backbone: nn.Module) -> None:
    class Doubled(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    layer = backbone.layers[0]
    layer.mlp.__class__ = Doubled
    assert layer.mlp not in faster_forwards(backbone)
    assert layer.mlp.down_proj in faster_forwards(backbone)
    other = backbone.layers[1].mlp
    assert other in faster_forwards(backbone)
    other.gate_proj = nn.Identity()  # of another kind, without a weight
    assert other not in faster_forwards(backbone)


@needs_onednn
def test_what_somebody_listens_to_or_changed_is_left_alone(backbone: nn.Module) -> None:
    first, second = (layer.mlp for layer in backbone.layers)
    heard: list[int] = []
    first.up_proj.register_forward_hook(lambda *_: heard.append(1))
    second.down_proj.forward = lambda x: x[..., :32]
    found = faster_forwards(backbone)
    assert not {first, first.up_proj, second, second.down_proj} & set(found)
    assert {first.gate_proj, first.down_proj, second.up_proj} <= set(found)
    list(iterate(backbone, [[5, 6]], pad_id=0))
    assert heard == [1] and "forward" in second.down_proj.__dict__


# --------------------------------------------------------------------------- where not
@pytest.mark.parametrize("wrong", [AttributeError("no such operator"), RuntimeError("no"), 1.5])
def test_without_a_right_product_torch_does_it(
    backbone: nn.Module, monkeypatch: pytest.MonkeyPatch, fresh: None, wrong: object
) -> None:
    product = kernels.product

    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        if isinstance(wrong, Exception):
            raise wrong
        return product(*args, **kwargs) * wrong

    monkeypatch.setattr(kernels, "product", broken)
    assert faster_forwards(backbone) == {}
    assert states_of(backbone).isfinite().all()


def test_a_build_without_onednn_and_other_types_are_left_alone(
    backbone: nn.Module, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    assert faster_forwards(backbone.to(torch.float16)) == {}
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert faster_forwards(backbone.to(torch.float32)) == {}


def test_other_devices_are_left_alone(backbone: nn.Module) -> None:
    assert faster_forwards(backbone.to("meta")) == {}
