"""`llm2vec convert`: a decoder of one's own, trained and exported, and what a kill leaves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from sentence_transformers import SentenceTransformer
from training_help import TEXTS, write_texts
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Lfm2Config,
    PreTrainedModel,
)

from llm2vec import LLM2Vec
from llm2vec import convert as module
from llm2vec.adapters import adapter_hash
from llm2vec.convert import AFTER, BEFORE, SCORED, SWITCHED, Settings, convert, trainable_model
from llm2vec.errors import AttentionError, DataError, LLM2VecError, SettingError
from llm2vec.export import cosines
from llm2vec.registry import MODELS, SUITES

SETTINGS = Settings(
    mntp_steps=2, simcse_steps=2, batch_size=4, block_size=16, learning_rate=1e-2,
    dtype="float32", device="cpu", save_every=1, scores=False,
)  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path)


def test_from_a_folder_to_an_encoder(tiny_llama_dir: Path, data: Path, tmp_path: Path) -> None:
    out = convert(str(tiny_llama_dir), data, tmp_path / "encoder", SETTINGS)
    assert {p.name for p in (tmp_path / "encoder.training").iterdir()} == {"mntp", "mntp-simcse"}
    ours = LLM2Vec.from_pretrained(out, device="cpu")
    assert ours.variant.name == "bi-mntp-simcse"
    folders = [tmp_path / "encoder.training" / stage for stage in ("mntp", "mntp-simcse")]
    by_hand = LLM2Vec.from_pretrained(
        tiny_llama_dir, extra_model_name_or_path=folders, device="cpu"
    )
    vectors = ours.encode(TEXTS[:6], convert_to_numpy=True)
    np.testing.assert_allclose(vectors, by_hand.encode(TEXTS[:6]), rtol=0, atol=1e-5)
    theirs = SentenceTransformer(str(out), device="cpu").encode(TEXTS[:6])
    assert cosines(vectors, theirs).min() > 0.9999
    untrained = LLM2Vec.from_pretrained(tiny_llama_dir, device="cpu").encode(TEXTS[:6])
    assert np.abs(vectors - untrained.numpy()).max() > 0.01
    card = (out / "README.md").read_text()
    assert "stage mntp: 2 steps" in card and "stage mntp-simcse: 2 steps" in card
    assert str(tmp_path) not in card and "texts.txt" in card


def test_a_run_goes_on_after_a_kill_between_and_within_stages(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(tiny_llama_dir), data, tmp_path / "encoder")
    whole = convert(*arguments[:2], tmp_path / "whole", SETTINGS)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_simcse", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(*arguments, SETTINGS)
    mntp = tmp_path / "encoder.training" / "mntp"
    before = {p: p.stat().st_mtime_ns for p in mntp.iterdir() if p.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(module, "export", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(*arguments, SETTINGS)
    out = convert(*arguments, SETTINGS)
    assert {p: p.stat().st_mtime_ns for p in mntp.iterdir() if p.is_file()} == before
    for stage in ("mntp", "mntp-simcse"):
        assert adapter_hash(tmp_path / "encoder.training" / stage) == adapter_hash(
            tmp_path / "whole.training" / stage
        )
    stamp = (out / "README.md").stat().st_mtime_ns
    assert convert(*arguments, SETTINGS) == out and whole.exists()  # done: nothing is touched
    assert (out / "README.md").stat().st_mtime_ns == stamp


def check_scores(out: Path) -> None:
    """Three numbers of one task, in `scores.json` and in the card."""
    table = json.loads((out.parent / "encoder.training" / "scores.json").read_text())
    assert list(table) == [BEFORE, SWITCHED, AFTER]
    values = [table[label][SCORED[1]] for label in table]
    assert len(set(values)) == 3 and all(-1 < value < 1 for value in values)
    line = next(x for x in (out / "README.md").read_text().splitlines() if SCORED[1] in x)
    for value in values:
        assert f"{100 * value:.2f}" in line


def test_scores_before_and_after_stand_in_the_card(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def score(vectors, task):
        calls.append(task.name)
        one, other = vectors.get([("", TEXTS[0]), ("", TEXTS[1])], "mean")
        return [SimpleNamespace(score=float(cosines(one[None], other[None])[0]))], None

    monkeypatch.setattr("llm2vec.mteb_tasks.evaluate_task", score)
    monkeypatch.setattr(module, "SCORED", SCORED[1:2])
    arguments = (str(tiny_llama_dir), data, tmp_path / "encoder", replace(SETTINGS, scores=True))
    out = convert(*arguments)
    check_scores(out)
    shutil.rmtree(out)
    convert(*arguments)
    check_scores(out)
    assert calls == [SCORED[1]] * 3  # not measured again
    shutil.rmtree(out)
    convert(*arguments[:3], replace(SETTINGS, scores=True, all_tasks=True))
    check_scores(out)
    others = [name for name in SUITES["offline"] if name != SCORED[1]]
    assert calls[3:] == others * 3
    card = (out / "README.md").read_text()
    assert len(others) == 14 and all(f"| {name} |" in card for name in others)


@pytest.mark.slow
def test_scores_are_those_of_the_offline_suite(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name.startswith("Offline") for name in SCORED] == [True] * 3
    monkeypatch.setattr(module, "SCORED", SCORED[1:2])
    settings = replace(SETTINGS, scores=True)
    check_scores(convert(str(tiny_llama_dir), data, tmp_path / "encoder", settings))


def test_what_cannot_work_is_said_before_training(
    tiny_llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "encoder"
    with pytest.raises(DataError, match="cannot read"):
        convert(str(tiny_llama_dir), tmp_path / "none.txt", out, SETTINGS)
    with pytest.raises(LLM2VecError, match="cannot load nowhere/model"):
        convert("nowhere/model", data, out, SETTINGS)
    with pytest.raises(SettingError, match="encoder already"):
        convert("minilm-l6", data, out, SETTINGS)
    with pytest.raises(DataError, match="blocks of 16"):
        convert(str(tiny_llama_dir), data, out, replace(SETTINGS, batch_size=400))
    with pytest.raises(SettingError, match="is not empty"):
        convert(str(tiny_llama_dir), data, tmp_path, SETTINGS)
    assert not out.exists()


def test_what_cannot_be_exported_is_not_trained(
    tiny_llama_dir: Path, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama_dir, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    parts = tokenizer["post_processor"]
    parts["single"].append(end)
    parts["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SettingError, match="adds special tokens other than one BOS"):
        convert(str(folder), data, tmp_path / "encoder", SETTINGS)
    assert not list((tmp_path / "encoder.training").glob("*"))


def test_a_hybrid_is_not_trained(data: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(add_bos=True)
    config = Lfm2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, layer_types=["full_attention", "conv"],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).float().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(AttentionError, match=r"lfm2.*1 conv"):
        convert(str(tmp_path / "model"), data, tmp_path / "encoder", SETTINGS)
    assert not list((tmp_path / "encoder.training").glob("*"))


@pytest.mark.parametrize("fails", ["set_attention", "check_attention"])
def test_what_cannot_be_scored_causal_is_not_trained(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    real = getattr(module, fails)

    def never_causal(backbone: object, bidirectional: bool, **options: object) -> None:
        if not bidirectional:
            raise AttentionError("cannot be made causal")
        real(backbone, bidirectional, **options)

    monkeypatch.setattr(module, fails, never_causal)
    out = tmp_path / "encoder"
    with pytest.raises(AttentionError, match="cannot be made causal"):
        convert(str(tiny_llama_dir), data, out, replace(SETTINGS, scores=True))
    assert not (tmp_path / "encoder.training" / "mntp").exists()
    module._check_decoder(trainable_model(str(tiny_llama_dir)), tmp_path, "cpu", causal=False)


def test_causal_scores_are_tried_in_the_dtype_they_are_taken_in(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.set_attention, []

    def switch(backbone: PreTrainedModel, bidirectional: bool) -> None:
        calls.append((backbone.dtype, bidirectional))
        real(backbone, bidirectional)

    monkeypatch.setattr(module, "set_attention", switch)
    model = replace(trainable_model(str(tiny_llama_dir)), dtype="bfloat16")
    module._check_decoder(model, tmp_path, "cpu", causal=True)
    both = [(torch.float32, False), (torch.float32, True)]
    assert calls == [*both, (torch.bfloat16, False)]
    calls.clear()
    module._check_decoder(model, tmp_path, "cpu", causal=False)
    assert calls == both[1:]


def test_a_push_during_the_training_changes_nothing(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every load of a hub id is of the commit that it had when convert began."""
    asked: list[object] = []
    commits = iter(("a" * 40, "b" * 40))

    def snapshot(_: str, *, revision: str | None, **__: object) -> str:
        asked.append(revision or next(commits))
        place = tmp_path / "snapshots" / str(asked[-1])
        return str(shutil.copytree(tiny_llama_dir, place, dirs_exist_ok=True))

    def pinned(kind: type) -> None:
        load = kind.from_pretrained

        def from_pretrained(source: str, *, revision: str | None = None, **options: object):
            if str(source) == "me/mine":
                asked.append(revision)
                source = tiny_llama_dir
            return load(source, **options)

        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("llm2vec.folders._check_whole", lambda *_: None)
    for kind in (AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer):
        pinned(kind)
    out = convert("me/mine", data, tmp_path / "encoder", SETTINGS)
    assert len(asked) > 9 and set(asked) == {"a" * 40}
    assert "revision " + "a" * 40 in (out / "README.md").read_text()


def test_a_folder_of_an_adapter_is_not_trained_as_its_base(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "me/base", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="holds an adapter of me/base"):
        trainable_model(str(tmp_path))


def test_settings_come_from_the_registry_or_the_architecture(tiny_llama_dir: Path) -> None:
    assert trainable_model("mistral-7b") is MODELS["mistral-7b"]
    model = trainable_model(str(tiny_llama_dir))
    assert (model.architecture, model.layers, model.hidden_size) == ("llama", 2, 32)
    assert model.mntp.mask_token == "_" and 1e4 < model.parameters < 1e5


@pytest.mark.slow
def test_smollm2_becomes_an_encoder(data: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, mntp_steps=1, simcse_steps=1, learning_rate=1e-4, scores=False)
    out = convert("smollm2-135m", data, tmp_path / "encoder", settings)
    ours = LLM2Vec.from_pretrained(out, device="cpu").encode(TEXTS[:3], convert_to_numpy=True)
    theirs = SentenceTransformer(str(out), device="cpu").encode(TEXTS[:3])
    assert cosines(ours, theirs).min() > 0.9999
