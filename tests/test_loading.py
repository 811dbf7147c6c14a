"""Loading: names, dtypes, broken folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2vec import LLM2Vec
from llm2vec.errors import LLM2VecError, SettingError, UnknownNameError
from llm2vec.loading import (
    ModelNotFoundError,
    load_backbone,
    resolve_device,
    resolve_dtype,
    resolve_model,
)
from llm2vec.registry import MODELS

IDS = torch.arange(3, 15).unsqueeze(0)
SMOLLM2 = MODELS["smollm2-135m"]


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be spoilt at will."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --------------------------------------------------------------------------- names
def test_a_registry_name_and_its_hub_id_are_one_model() -> None:
    assert resolve_model("mistral-7b") is resolve_model("mistralai/Mistral-7B-Instruct-v0.2")


def test_a_folder_that_names_its_model_is_that_model(folder: Path) -> None:
    assert resolve_model(folder).chat is None
    for name in ("mistral-7b", "minilm-l6", "bert-base-simcse", "smollm2-135m"):
        known = MODELS[name]
        edit_json(folder / "config.json", _name_or_path=known.hub_id)
        model = resolve_model(folder)
        assert (model.name, model.hub_id, model.revision) == ("model", str(folder), "unpinned")
        for field in ("chat", "kind", "dtype", "own_pooling", "normalize", "max_length", "layers"):
            assert getattr(model, field) == getattr(known, field), field
        assert not model.in_paper and model.asset is None and not model.published
        assert model.mntp is None and model.simcse is None


def test_a_copy_loads_from_its_own_folder_in_the_dtype_of_its_model(folder: Path) -> None:
    edit_json(folder / "config.json", _name_or_path=MODELS["mistral-7b"].hub_id)
    assert load_backbone(folder)[0].dtype == torch.bfloat16
    edit_json(folder / "config.json", _name_or_path=SMOLLM2.hub_id)
    assert load_backbone(folder)[0].config.hidden_size == 32  # not the embedded weights


def test_a_copy_that_does_not_name_its_model_can_be_named(folder: Path) -> None:
    """transformers 5 writes no `_name_or_path`, so this is what a copy looks like."""
    for name in ("mistral-7b", MODELS["mistral-7b"].hub_id):
        encoder = LLM2Vec.from_pretrained(folder, base_model=name, device="cpu")
        (tokens,) = encoder.tokenize([("", "a dog")])
        assert encoder.tokenizer.decode(tokens.ids) == "<s>[INST] a dog [/INST]"
        assert encoder.dtype == torch.bfloat16 and encoder.model.hub_id == str(folder)
    with pytest.raises(UnknownNameError, match=r"unknown model 'mistral-8b'.*'mistral-7b'"):
        LLM2Vec.from_pretrained(folder, base_model="mistral-8b")
    with pytest.raises(SettingError, match="minilm-l6 is minilm-l6; base_model says mistral-7b"):
        LLM2Vec.from_pretrained("minilm-l6", base_model="mistral-7b")


def test_a_chat_template_that_is_not_used_is_told_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if "chat" in line]

    LLM2Vec.from_pretrained(folder, device="cpu")
    edit_json(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    LLM2Vec.from_pretrained(folder, base_model="mistral-7b", device="cpu")
    assert told() == []
    encoder = LLM2Vec.from_pretrained(folder, device="cpu")
    (line,) = told()
    for part in (str(folder), "no chat format", 'base_model="mistral-7b"', "_name_or_path"):
        assert part in line
    LLM2Vec.from_pretrained(folder, device="cpu")
    encoder.save(folder.with_name("saved"))
    LLM2Vec.from_pretrained(folder.with_name("saved"), device="cpu")  # which says: none
    assert told() == []


@pytest.mark.parametrize("config", ["{", "[]", ""])
def test_a_config_that_is_no_json_object_is_named(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        load_backbone(folder)


def test_dtypes_by_name() -> None:
    assert resolve_dtype(None, SMOLLM2) is torch.float32
    assert resolve_dtype(None, MODELS["mistral-7b"]) is torch.bfloat16
    assert resolve_dtype("torch.float16", SMOLLM2) is torch.float16
    assert resolve_dtype(torch.float64, SMOLLM2) is torch.float64
    for wrong in ("bf16", "int8", 16):
        with pytest.raises(SettingError, match=rf"{wrong}.*float32, bfloat16, float16"):
            resolve_dtype(wrong, SMOLLM2)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == torch.device("cpu")
    with pytest.raises(SettingError, match="unknown device 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(SettingError, match="no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(None) == torch.device("cuda")


# --------------------------------------------------------------------------- backbones
def test_a_folder_loads_ready_for_use(tiny_llama_dir: Path, tiny_llama) -> None:
    backbone, tokenizer = load_backbone(tiny_llama_dir)
    assert not backbone.training and backbone.dtype == torch.float32
    assert tokenizer.pad_token == "<pad>"
    with torch.no_grad():
        expected = tiny_llama.model.model(IDS).last_hidden_state
        torch.testing.assert_close(backbone(IDS).last_hidden_state, expected)
    with_head, _ = load_backbone(str(tiny_llama_dir), head=True, dtype="bfloat16")
    assert with_head.dtype == torch.bfloat16
    torch.testing.assert_close(with_head.lm_head.weight.float(), tiny_llama.model.lm_head.weight,
                               rtol=1e-2, atol=1e-2)  # fmt: skip


def test_a_tokenizer_without_padding_gets_eos(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    _, tokenizer = load_backbone(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: truncate(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"no weights here"),
        lambda folder: truncate(folder / "tokenizer.json"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: edit_json(folder / "config.json", model_type="no-such-model"),
        lambda folder: edit_json(folder / "config.json", hidden_size=64),
    ],
    ids=["no weights", "half the weights", "garbage", "half a tokenizer", "empty tokenizer",
         "no config", "unknown architecture", "other sizes"],
)  # fmt: skip
def test_a_broken_folder_is_named_in_one_line(
    folder: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(folder)
    with pytest.raises(ModelNotFoundError) as error:
        load_backbone(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    """transformers would fill the gap with random numbers and only warn."""
    weights = load_file(folder / "model.safetensors")
    gap = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_backbone(folder)
    save_file(weights | {"model.layers.1.mlp.up_proj.weight": gap}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    load_backbone(folder)


def test_a_missing_head_is_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load_backbone(folder)
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 weights.*lm_head"):
        load_backbone(folder, head=True)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        load_backbone(folder)


def test_code_from_a_model_folder_never_runs(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()")
    edit_json(
        folder / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
    )
    with pytest.raises(LLM2VecError):
        load_backbone(folder)
    assert not witness.exists()
