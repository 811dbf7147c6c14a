"""LoRA adapters: merging them, refusing those that do not fit, and finding them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXModel

from llm2vec import LLM2Vec, paths
from llm2vec import encoder as encoder_module
from llm2vec.adapters import (
    ADAPTER_WEIGHTS,
    adapter_folder,
    adapter_folders,
    adapter_hash,
    has_adapters,
    published_adapters,
)
from llm2vec.attention import check_attention, set_attention
from llm2vec.encoder import load_encoder
from llm2vec.errors import AdapterError
from llm2vec.loading import merge_adapter
from llm2vec.registry import MODELS, VARIANTS, LoRA
from llm2vec.results import sha256_file

IDS = torch.arange(3, 15).unsqueeze(0)
SMOLLM2 = MODELS["smollm2-135m"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# --------------------------------------------------------------------------- adapters: making one
def make_adapter(model: torch.nn.Module, folder: Path, seed: int = 1) -> PeftModel:
    """A random LoRA on the registry's modules, saved; the wrapped model in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, lora_alpha=8, init_lora_weights=False, target_modules=list(LoRA().target_modules)
        )
        wrapped = get_peft_model(model, config).eval()
    wrapped.save_pretrained(folder)
    return wrapped


@torch.no_grad()
def last_states(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).last_hidden_state


@pytest.fixture
def adapter(make_tiny_llama, tmp_path: Path) -> Path:
    make_adapter(make_tiny_llama().model.model, tmp_path / "adapter")
    return tmp_path / "adapter"


# --------------------------------------------------------------------------- adapters: merging
def test_a_merged_adapter_equals_the_adapter(make_tiny_llama, tmp_path: Path) -> None:
    expected = last_states(make_adapter(make_tiny_llama().model.model, tmp_path))
    fresh = make_tiny_llama().model.model
    before = last_states(fresh)
    merged = merge_adapter(fresh, tmp_path)
    assert not isinstance(merged, PeftModel)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert not merged.training
    torch.testing.assert_close(last_states(merged), expected, rtol=0, atol=2e-5)
    assert (expected - before).abs().max() > 0.1


def test_an_adapter_trained_with_the_head_fits_the_backbone(
    make_tiny_llama, tmp_path: Path
) -> None:
    trained = make_tiny_llama().model
    wrapped = make_adapter(trained, tmp_path)
    keys = load_file(tmp_path / ADAPTER_WEIGHTS)
    assert all(key.startswith("base_model.model.model.layers.") for key in keys)
    expected = last_states(wrapped.base_model.model.model)
    merged = merge_adapter(make_tiny_llama().model.model, tmp_path)
    torch.testing.assert_close(last_states(merged), expected, rtol=0, atol=2e-5)


def test_two_adapters_are_merged_in_order(make_tiny_llama, tmp_path: Path) -> None:
    first = merge_adapter(make_tiny_llama().model.model, _saved(make_tiny_llama, tmp_path / "a", 1))
    expected = last_states(make_adapter(first, tmp_path / "b", 2))
    both = make_tiny_llama().model.model
    for name in ("a", "b"):
        both = merge_adapter(both, tmp_path / name)
    torch.testing.assert_close(last_states(both), expected, rtol=0, atol=5e-5)


def _saved(make_tiny_llama, folder: Path, seed: int) -> Path:
    make_adapter(make_tiny_llama().model.model, folder, seed)
    return folder


@pytest.mark.parametrize(
    "other",
    [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"hidden_size": 64}],
    ids=["more layers", "fewer layers", "wider"],
)
def test_an_adapter_of_another_backbone_is_refused(
    make_tiny_llama, adapter: Path, other: dict[str, int]
) -> None:
    with pytest.raises(AdapterError, match=r"another backbone|does not fit") as error:
        merge_adapter(make_tiny_llama(**other).model.model, adapter)
    assert str(adapter) in str(error.value)


def test_an_adapter_of_another_architecture_is_refused(adapter: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    with pytest.raises(AdapterError, match=r"another backbone|does not fit"):
        merge_adapter(GPTNeoXModel(config), adapter)


def test_weights_that_find_no_place_are_refused(tiny_llama, adapter: Path) -> None:
    """As many matrices as there is room for, one of them under another name."""
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    key = next(iter(weights))
    weights[key.replace("layers.", "blocks.")] = weights.pop(key)
    save_file(weights, adapter / ADAPTER_WEIGHTS)
    with pytest.raises(AdapterError, match="another backbone"):
        merge_adapter(tiny_llama.model.model, adapter)


def test_an_adapter_with_a_gap_is_refused(tiny_llama, adapter: Path) -> None:
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    weights.pop(next(iter(weights)))
    save_file(weights, adapter / ADAPTER_WEIGHTS)
    with pytest.raises(AdapterError, match=r"27 LoRA matrices.*room for 28"):
        merge_adapter(tiny_llama.model.model, adapter)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: truncate(folder / ADAPTER_WEIGHTS),
        lambda folder: (folder / ADAPTER_WEIGHTS).write_bytes(b""),
        lambda folder: (folder / ADAPTER_WEIGHTS).unlink(),
        lambda folder: (folder / "adapter_config.json").unlink(),
        lambda folder: truncate(folder / "adapter_config.json"),
    ],
    ids=["half the weights", "empty", "no weights", "no config", "half a config"],
)
def test_a_corrupt_adapter_is_refused(
    tiny_llama, adapter: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(adapter)
    with pytest.raises(AdapterError, match="not a readable LoRA adapter") as error:
        merge_adapter(tiny_llama.model.model, adapter)
    assert str(adapter) in str(error.value)


# --------------------------------------------------------------------------- adapters: provenance
def test_an_adapter_says_for_which_model_it_was_trained(make_tiny_llama, adapter: Path) -> None:
    note = adapter / "provenance.json"
    note.write_text(json.dumps({"model": "smollm2-135m"}))
    with pytest.raises(AdapterError, match="trained for smollm2-135m, not for mistral-7b"):
        merge_adapter(make_tiny_llama().model.model, adapter, "mistral-7b")
    for spoilt in ("{", "[]"):
        note.write_text(spoilt)
        with pytest.raises(AdapterError, match=r"provenance\.json"):
            merge_adapter(make_tiny_llama().model.model, adapter, "smollm2-135m")
    note.write_text(json.dumps({"model": "smollm2-135m"}))
    merge_adapter(make_tiny_llama().model.model, adapter, "smollm2-135m")


# --------------------------------------------------------------------------- adapters: finding them
@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Empty folders for own checkpoints and for shipped adapters."""
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(own))
    monkeypatch.setattr(paths, "shipped_adapters_dir", lambda: shipped)
    return own, shipped


def put(root: Path, stage: str, content: bytes = b"weights") -> Path:
    folder = root / "smollm2-135m" / stage
    folder.mkdir(parents=True)
    (folder / ADAPTER_WEIGHTS).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("variant", "command"),
    [
        ("bi-mntp", "experiments/01_train_mntp.py --model smollm2-135m"),
        ("uni-simcse", "experiments/02_train_simcse.py --model smollm2-135m --variant uni-simcse"),
        ("bi-simcse", "experiments/02_train_simcse.py --model smollm2-135m --variant bi-simcse"),
        ("bi-mntp-simcse",
         "experiments/02_train_simcse.py --model smollm2-135m --variant bi-mntp-simcse"),
    ],
)  # fmt: skip
def test_a_missing_adapter_names_the_command_that_makes_it(
    roots: tuple[Path, Path], variant: str, command: str
) -> None:
    if variant == "bi-mntp-simcse":
        put(roots[0], "mntp")
    assert not has_adapters(SMOLLM2, VARIANTS[variant])
    with pytest.raises(AdapterError) as error:
        adapter_folders(SMOLLM2, VARIANTS[variant])
    assert f"'python {command}'" in str(error.value)
    assert "ADAPTERS=published" not in str(error.value)


def test_a_missing_adapter_for_words_names_its_own_command(roots: tuple[Path, Path]) -> None:
    with pytest.raises(AdapterError) as error:
        adapter_folder(MODELS["mistral-7b"], "mntp-words")
    assert "'python experiments/01_train_mntp.py --model mistral-7b --words'" in str(error.value)


def noted(folder: Path, **note: object) -> Path:
    (folder / "provenance.json").write_text(json.dumps(note))
    return folder


def test_an_adapter_of_another_variant_or_model_is_refused_where_it_lies(
    roots: tuple[Path, Path],
) -> None:
    folder = put(roots[0], "bi-simcse")
    noted(folder, model="smollm2-135m", stage="bi-simcse", merged_before=[])
    assert adapter_folders(SMOLLM2, VARIANTS["bi-simcse"]) == [folder]
    noted(folder, model="smollm2-135m", stage="uni-simcse", merged_before=[])
    with pytest.raises(AdapterError, match="adapter of stage 'uni-simcse', not 'bi-simcse'"):
        adapter_folders(SMOLLM2, VARIANTS["bi-simcse"])
    noted(folder, model="mistral-7b", stage="bi-simcse")
    with pytest.raises(AdapterError, match="trained for mistral-7b, not for smollm2-135m"):
        adapter_folders(SMOLLM2, VARIANTS["bi-simcse"])
    assert not has_adapters(SMOLLM2, VARIANTS["bi-simcse"])


def test_an_adapter_on_top_of_another_one_than_that_at_hand_is_refused(
    roots: tuple[Path, Path],
) -> None:
    """As after MNTP was trained anew: the shipped SimCSE adapter does not fit the new one."""
    own, shipped = roots
    first, second = put(shipped, "mntp"), put(shipped, "mntp-simcse")
    noted(second, stage="mntp-simcse", merged_before=[adapter_hash(first)])
    assert adapter_folders(SMOLLM2, VARIANTS["bi-mntp-simcse"]) == [first, second]
    put(own, "mntp", b"newer")
    with pytest.raises(
        AdapterError, match=r"on top of another .*--variant bi-mntp-simcse"
    ) as error:
        adapter_folders(SMOLLM2, VARIANTS["bi-mntp-simcse"])
    assert str(second) in str(error.value) and str(own) in str(error.value)
    assert adapter_folders(SMOLLM2, VARIANTS["bi-mntp"]) == [own / "smollm2-135m" / "mntp"]


def test_where_the_authors_published_adapters_the_error_says_so(
    roots: tuple[Path, Path],
) -> None:
    with pytest.raises(AdapterError, match="ADAPTERS=published"):
        adapter_folder(MODELS["mistral-7b"], "mntp")


def test_own_checkpoints_come_before_shipped_adapters(roots: tuple[Path, Path]) -> None:
    own, shipped = roots
    (own / "smollm2-135m" / "mntp").mkdir(parents=True)  # a run that has not saved yet
    there = put(shipped, "mntp")
    assert adapter_folder(SMOLLM2, "mntp") == there
    shutil.rmtree(own)
    there = put(own, "mntp", b"newer")
    assert adapter_folder(SMOLLM2, "mntp") == there
    assert adapter_hash(there) == sha256_file(there / ADAPTER_WEIGHTS)


def test_the_name_of_the_weights_is_written_once() -> None:
    """Trained, looked for and hashed under one name."""
    code = "\n".join(file.read_text() for file in Path(paths.__file__).parent.glob("*.py"))
    assert code.count(f'"{ADAPTER_WEIGHTS}"') == 1


def test_adapters_come_in_the_order_of_the_recipe(roots: tuple[Path, Path]) -> None:
    own, _ = roots
    stages = {stage: put(own, stage) for stage in ("mntp", "mntp-simcse", "uni-simcse")}
    assert adapter_folders(SMOLLM2, VARIANTS["bi-mntp-simcse"]) == [
        stages["mntp"],
        stages["mntp-simcse"],
    ]
    assert adapter_folders(SMOLLM2, VARIANTS["bi-mntp"]) == [stages["mntp"]]
    assert adapter_folders(SMOLLM2, VARIANTS["uni-simcse"]) == [stages["uni-simcse"]]
    for untrained in ("uni", "bi", "echo", "encoder"):
        assert adapter_folders(SMOLLM2, VARIANTS[untrained]) == []
    assert has_adapters(SMOLLM2, VARIANTS["bi"])


def test_published_adapters_that_do_not_exist_are_refused() -> None:
    for model, variant in (("smollm2-135m", "bi-mntp"), ("mistral-7b", "uni-simcse")):
        with pytest.raises(AdapterError, match=r"no published adapters.*s-llama-1\.3b"):
            published_adapters(MODELS[model], VARIANTS[variant])
    assert published_adapters(MODELS["mistral-7b"], VARIANTS["bi"]) == []


def test_published_adapters_that_cannot_be_had_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError, match="McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"):
        published_adapters(MODELS["mistral-7b"], VARIANTS["bi-mntp-simcse"])


# --------------------------------------------------------------------------- encoders with adapters
def test_from_pretrained_merges_an_adapter(make_tiny_llama, tiny_llama_dir: Path, tmp_path) -> None:
    wrapped = make_adapter(make_tiny_llama().model.model, tmp_path, 3)
    encoder = LLM2Vec.from_pretrained(
        tiny_llama_dir, tmp_path, enable_bidirectional=False, device="cpu"
    )
    with torch.no_grad():
        ids = encoder.tokenizer("dog")["input_ids"]
        expected = wrapped(input_ids=torch.tensor([ids])).last_hidden_state[0, 1:].mean(0)
    np.testing.assert_allclose(encoder.encode("dog"), expected.numpy(), rtol=0, atol=5e-5)
    assert len(encoder.adapters) == 1 and len(encoder.adapters[0]) == 64


@pytest.fixture
def stand_in(make_tiny_llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny decoder in the place of smollm2-135m; returns its folder of own adapters."""
    monkeypatch.setattr(encoder_module, "load_backbone", lambda *_, **__: _inner(make_tiny_llama()))
    monkeypatch.setattr(paths, "shipped_adapters_dir", lambda: tmp_path / "shipped")
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path))
    return tmp_path / "smollm2-135m"


def _inner(tiny) -> tuple[torch.nn.Module, object]:
    return tiny.model.model, tiny.tokenizer


@pytest.mark.parametrize(
    ("variant", "stages"),
    [
        ("uni", []),
        ("bi", []),
        ("bi-mntp", ["mntp"]),
        ("bi-mntp-simcse", ["mntp", "mntp-simcse"]),
        ("bi-simcse", ["bi-simcse"]),
    ],
)
def test_load_encoder_merges_every_stage_of_the_variant(
    make_tiny_llama, stand_in: Path, variant: str, stages: list[str]
) -> None:
    for seed, stage in enumerate(("mntp", "mntp-simcse", "bi-simcse")):
        make_adapter(make_tiny_llama().model.model, stand_in / stage, seed)
    loaded = load_encoder("smollm2-135m", variant, pooling="weighted_mean")
    bidirectional = VARIANTS[variant].attention == "bidirectional"
    check_attention(loaded.backbone, bidirectional)
    assert loaded.adapters == tuple(adapter_hash(stand_in / stage) for stage in stages)
    assert loaded.pooling == "weighted_mean" and loaded.variant.name == variant

    expected = make_tiny_llama().model.model
    set_attention(expected, bidirectional)
    for stage in stages:
        expected = merge_adapter(expected, stand_in / stage)
    torch.testing.assert_close(last_states(loaded.backbone), last_states(expected))


def test_load_encoder_without_its_adapter_names_the_command(stand_in: Path) -> None:
    with pytest.raises(AdapterError, match=r"01_train_mntp\.py --model smollm2-135m"):
        load_encoder("smollm2-135m", "bi-mntp-simcse")
    assert not (stand_in / "mntp" / ADAPTER_WEIGHTS).exists()
    with pytest.raises(AdapterError, match="no published adapters"):
        load_encoder("smollm2-135m", "bi-mntp", adapters="published")
