"""LoRA on every linear layer of the blocks, in each family that ``architectures.py`` names."""

import json
from ast import literal_eval
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from test_any_decoder import COMMON, MIXTURES, make_folder
from test_any_decoder import FAMILIES as TABLE
from training_help import MNTP_SETTINGS, SIMCSE_SETTINGS, tiny_model, write_texts
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from llm2vec.architectures import LORA_MODULES, fitted, lora_for
from llm2vec.errors import SettingError
from llm2vec.lora import add_lora
from llm2vec.mntp import train_mntp
from llm2vec.registry import MNTP, MODELS, LoRA, SimCSE, get_variant, settings_dict
from llm2vec.simcse import train_simcse
from llm2vec.stage import Options

FAMILIES = {name: values for name, values in TABLE.items() if name in LORA_MODULES}


def tiny(family: str, **config: object) -> PreTrainedModel:
    values = COMMON | TABLE.get(family, {}) | {"vocab_size": 100} | config
    return AutoModel.from_config(CONFIG_MAPPING[family](**values)).float()


def linear(model: torch.nn.Module) -> set[str]:
    """Names of all linear layers; GPT-2's and Falcon's are classes of their own."""
    kinds = ("Linear", "Conv1D", "FalconLinear")
    return {name for name, module in model.named_modules() if type(module).__name__ in kinds}


def wrapped(model: torch.nn.Module) -> set[str]:
    found = (name for name, module in model.named_modules() if isinstance(module, LoraLayer))
    return {name.removeprefix("base_model.model.") for name in found}


# --------------------------------------------------------------------------- every linear layer
@pytest.mark.parametrize("family", [*FAMILIES, "llama", "mistral"])
def test_every_linear_layer_of_the_blocks_has_lora(family: str) -> None:
    backbone = tiny(family)
    expected = linear(backbone)
    assert len(expected) >= 8
    assert wrapped(add_lora(backbone, lora_for(family), 0)) == expected


def test_every_family_with_names_of_its_own_is_looked_at() -> None:
    assert set(LORA_MODULES) <= set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "missed"),
    [
        ("phi3", "4 of 8 linear layers of phi3: qkv_proj, gate_up_proj. "),
        ("opt", "6 of 12 linear layers of opt: out_proj, fc1, fc2. "),
        ("falcon", "8 of 8 linear layers of falcon: query_key_value, dense, "),
        ("gpt2", "8 of 8 linear layers of gpt2: c_attn, c_proj, c_fc. "),
    ],
)
def test_a_layer_without_lora_is_an_error_that_gives_the_line_to_write(
    family: str, missed: str
) -> None:
    with pytest.raises(SettingError, match=missed) as caught:
        add_lora(tiny(family), LoRA(), 0)
    line = str(caught.value).splitlines()[-1]
    ((kind, names),) = literal_eval("{" + line + "}").items()
    assert kind == family and set(names) == set(LORA_MODULES[family])
    assert wrapped(add_lora(tiny(family), LoRA(target_modules=names), 0)) == linear(tiny(family))


def test_one_forgotten_layer_is_enough() -> None:
    names = tuple(name for name in LoRA().target_modules if name != "up_proj")
    with pytest.raises(SettingError, match="2 of 14 linear layers of llama: up_proj"):
        add_lora(tiny("llama"), LoRA(target_modules=names), 0)


def test_layers_before_and_behind_the_blocks_need_none() -> None:
    backbone = tiny("opt", word_embed_proj_dim=16)
    outside = linear(backbone) - wrapped(add_lora(backbone, lora_for("opt"), 0))
    assert outside == {"decoder.project_in", "decoder.project_out"}


def test_an_encoder_of_images_beside_the_decoder_needs_none() -> None:
    text = COMMON | {"vocab_size": 100, "head_dim": 8}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {name: COMMON[name] for name in names} | {"image_size": 28}
    backbone = AutoModel.from_config(
        CONFIG_MAPPING["gemma3"](text_config=text, vision_config=vision)
    )
    expected = {f"language_model.{name}" for name in linear(backbone.language_model)}
    images = linear(backbone.vision_tower)
    found = wrapped(add_lora(backbone, LoRA(), 0))
    assert expected <= found and any("fc1" in name for name in images)
    assert not any("fc1" in name for name in found)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_and_routers_go_without_and_a_line_says_so(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = add_lora(tiny(family), lora_for(family), 0)
    assert not any("experts" in name or "router" in name for name in wrapped(model))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("no LoRA on mlp.experts.down_proj, ")
    router = "mlp.router.weight" if family == "gpt_oss" else "mlp.gate.weight"
    assert f", mlp.experts.gate_up_proj, {router} of {family}: " in said


def test_a_dense_model_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for family in ("llama", "gpt2", "falcon"):
        add_lora(tiny(family), lora_for(family), 0)
    assert capsys.readouterr().err == ""


def test_what_peft_refuses_names_the_architecture() -> None:
    """peft takes gate_proj and its like for the fused experts here, and refuses the dropout."""
    with pytest.raises(SettingError, match=r"does not fit qwen3_moe: .*dropout.*architectures\.md"):
        add_lora(tiny("qwen3_moe"), LoRA(), 0)


# --------------------------------------------------------------------------- the registry's LoRA
def test_the_models_of_the_paper_keep_their_hyperparameters() -> None:
    for model in MODELS.values():
        for settings in (model.mntp, model.mntp_words, model.simcse):
            if settings is not None:
                assert fitted(settings, model.architecture) == settings


def test_default_modules_become_the_architectures_and_chosen_ones_stay() -> None:
    settings = MNTP(steps=7, lora=LoRA(r=4, dropout=0.0))
    ours = fitted(settings, "phi3")
    assert ours.lora == LoRA(r=4, dropout=0.0, target_modules=LORA_MODULES["phi3"])
    assert replace(ours, lora=settings.lora) == settings
    chosen = SimCSE(lora=LoRA(target_modules=("qkv_proj",)))
    assert fitted(chosen, "phi3") is chosen


@pytest.mark.parametrize("stage", ["mntp", "bi-simcse"])
def test_a_registry_model_is_trained_on_its_own_linear_layers(stage: str, tmp_path: Path) -> None:
    """As docs/extending.md says: an entry with plain MNTP() and SimCSE() works in any family."""
    folder, text = make_folder("phi3", tmp_path / "model"), write_texts(tmp_path)
    model = replace(tiny_model(folder), architecture="phi3")
    options, out = Options(dtype="float32", device="cpu"), tmp_path / "out"
    if stage == "mntp":
        settings = replace(MNTP_SETTINGS, steps=1)
        train_mntp(model, settings, settings, out, options, text, accuracy=False)
    else:
        settings = replace(SIMCSE_SETTINGS, steps=1)
        train_simcse(model, get_variant(stage), settings, settings, out, options, text)
    trained = json.loads((out / "adapter_config.json").read_text())
    note = json.loads((out / "provenance.json").read_text())
    names = LORA_MODULES["phi3"]
    assert set(trained["target_modules"]) == set(names)
    lora = replace(settings.lora, target_modules=names)
    assert note["hyperparameters"] == settings_dict(replace(settings, lora=lora))
    assert note["departures"] == {}
