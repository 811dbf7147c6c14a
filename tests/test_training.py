"""The training loop: order, schedule, checkpoints, guards, and what a run leaves behind."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_help import LORA, MNTP_SETTINGS, TEXTS, adapter, lines, run, snapshot, write_texts
from transformers.models.llama.modeling_llama import LlamaMLP

from llm2vec import training
from llm2vec.errors import SettingError
from llm2vec.loading import load_backbone, merge_adapter
from llm2vec.lora import CPUDropout, add_lora
from llm2vec.registry import LoRA
from llm2vec.runs import TrainingError
from llm2vec.stage import Options, Stream, departures, with_overrides


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_texts(tmp_path)


# --------------------------------------------------------------------------- order of samples
@given(n=st.integers(1, 30), epochs=st.integers(1, 4), seed=st.integers(0, 5))
def test_stream_shows_every_sample_once_per_epoch(n: int, epochs: int, seed: int) -> None:
    stream = Stream(list(range(n)), n * epochs, seed)
    seen = [stream[p][1] for p in range(n * epochs)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_stream_depends_on_seed_and_position_alone() -> None:
    samples = list(range(50))
    long, short = Stream(samples, 150, 1), Stream(samples, 60, 1)
    assert [short[p] for p in reversed(range(60))] == [long[p] for p in reversed(range(60))]
    assert [Stream(samples, 50, 2)[p] for p in range(50)] != [long[p] for p in range(50)]
    first, second = ([long[p][1] for p in range(e * 50, e * 50 + 50)] for e in (0, 1))
    assert first != second


# --------------------------------------------------------------------------- settings
def test_overrides_are_checked_and_recorded() -> None:
    changed = with_overrides(MNTP_SETTINGS, steps=3, learning_rate=None, seed=7)
    assert (changed.steps, changed.seed, changed.learning_rate) == (3, 7, 1e-2)
    assert departures(changed, MNTP_SETTINGS) == {
        "steps": {"registry": 6, "here": 3},
        "seed": {"registry": 42, "here": 7},
    }
    with pytest.raises(SettingError, match="batch_size must be above 0"):
        with_overrides(MNTP_SETTINGS, batch_size=0)
    with pytest.raises(SettingError, match="beyond the schedule's end"):
        with_overrides(MNTP_SETTINGS, steps=51)
    with pytest.raises(SettingError, match="unknown dtype 'float16'"):
        Options(dtype="float16")
    with pytest.raises(SettingError, match="must be 1 or more"):
        Options(save_every=0)
    with pytest.raises(SettingError, match=r"not 'cuda:1'; .*CUDA_VISIBLE_DEVICES"):
        Options(device="cuda:1")


def test_each_process_loads_onto_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Options(device="cpu").placement == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert Options().placement == "cuda:0" and Options(device="cpu").placement == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Options().placement == Options(device="cuda").placement == "cuda:3"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # no GPU need hold the whole model
    assert Options().placement == "cpu"


def test_one_process_uses_one_gpu_however_many_there_are(
    tiny_llama_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer alone would spread the model over all and multiply the batch by their number."""
    one = run("mntp", tiny_llama_dir, text, tmp_path / "one", steps=2)
    monkeypatch.setattr(Options, "on_cpu", property(lambda self: False))
    monkeypatch.setattr(Options, "placement", "cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    other = run("mntp", tiny_llama_dir, text, tmp_path / "other", steps=2)
    assert adapter(other) == adapter(one)
    assert [x["tokens"] for x in lines(other)] == [4 * 16] * 2


def test_lora_is_float32_on_a_frozen_bfloat16_backbone(make_tiny_llama) -> None:
    body = make_tiny_llama().model.to(torch.bfloat16).base_model
    named = dict(add_lora(body, LORA, seed=1).named_parameters())
    trained = {n: p for n, p in named.items() if p.requires_grad}
    assert trained and all("lora_" in n and p.dtype == torch.float32 for n, p in trained.items())
    assert all(p.dtype == torch.bfloat16 for n, p in named.items() if n not in trained)
    assert len(trained) == 2 * 7 * 2  # A and B, seven modules, two layers


def test_small_updates_count_in_bfloat16(tiny_llama_dir: Path, text: Path, tmp_path: Path) -> None:
    """Weights near 0.3 have a last bit of 1e-3 in bfloat16: steps of 1e-5 would change nothing."""
    lora = LoRA(r=4, alpha=8, dropout=0.0)
    out = run(
        "mntp", tiny_llama_dir, text, tmp_path / "out", {"dtype": "bfloat16"}, steps=4,
        learning_rate=1e-5, lora=lora,
    )  # fmt: skip
    checkpoint = out / "run" / "checkpoint-4"
    saved = load_file(checkpoint / "lora.safetensors")
    moments = load_file(checkpoint / "optimizer.safetensors")
    assert {w.dtype for w in (*saved.values(), *moments.values())} == {torch.float32}
    assert len(moments) == 3 * len(saved)  # both moments and the step of each
    body, _ = load_backbone(tiny_llama_dir, dtype="bfloat16", device="cpu")
    for name, start in add_lora(body, lora, seed=42).named_parameters():
        if "lora_A" in name:
            moved = (saved[f"backbone.{name}"] - start.detach()).abs()
            assert moved.max() < 1e-4 and (moved > 0).float().mean() > 0.9, name


@pytest.mark.parametrize("stage", ["mntp", "bi-simcse"])
def test_checkpointing_recomputes_and_changes_nothing(
    stage: str, tiny_llama_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = LlamaMLP.forward

    def counting(self, x):
        passes[-1] += torch.is_grad_enabled()
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counting)
    outs = []
    for checkpointing in (False, True):
        passes.append(0)
        options = {"checkpointing": checkpointing}
        outs.append(run(stage, tiny_llama_dir, text, tmp_path / str(checkpointing), options))
    assert adapter(outs[0]) == adapter(outs[1])  # dropout included
    assert passes[1] == pytest.approx(2 * passes[0], abs=8)


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.parametrize("stage", ["mntp", "bi-simcse"])
def test_compiled_layers_train_to_the_same_weights(
    stage: str, tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    dry = {"lora": dataclasses.replace(LORA, dropout=0.0)}
    dry |= {"attention_dropout": 0.0} if stage != "mntp" else {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    weights = [
        load_file(run(stage, tiny_llama_dir, text, tmp_path / str(c), {"compile": c}, **dry)
                  / "adapter_model.safetensors")
        for c in (False, True)
    ]  # fmt: skip
    # Really compiled, and one program serves all layers (the first one's input needs no gradient).
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    plain, compiled = weights
    assert plain.keys() == compiled.keys()
    moved = max(float(w.abs().max()) for name, w in plain.items() if "lora_B" in name)
    for name, weight in plain.items():
        assert (weight - compiled[name]).abs().max() < 0.05 * moved, name


def test_a_fused_optimizer_goes_on_where_it_stopped(
    tiny_llama_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose optimizer keeps the number of steps beside the parameters."""
    made = training.TrainingArguments

    def fused(*arguments: Any, **values: Any) -> Any:
        return made(*arguments, **values | {"optim": "adamw_torch_fused"})

    monkeypatch.setattr(training, "TrainingArguments", fused)
    whole = run("mntp", tiny_llama_dir, text, tmp_path / "whole", steps=6)
    parts = run("mntp", tiny_llama_dir, text, tmp_path / "parts", steps=4)
    assert run("mntp", tiny_llama_dir, text, tmp_path / "parts", steps=6) == parts
    assert adapter(whole) == adapter(parts)


# --------------------------------------------------------------------------- one whole run
def test_run_leaves_adapter_provenance_and_metrics(
    tiny_llama_dir: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("mntp", tiny_llama_dir, text, tmp_path / "out", seed=7)
    assert re.search(r"6/6 .*loss \d+\.\d+, \d+ tokens/s", capsys.readouterr().err)
    weights = load_file(out / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert all(k.startswith("base_model.model.layers.") for k in weights)
    note = json.loads((out / "provenance.json").read_text())
    assert note["steps"] == 6 and note["tokens"] == 6 * 4 * 16
    assert note["epochs"] == pytest.approx(24 / note["samples"], abs=1e-3)
    assert note["departures"] == {"seed": {"registry": 42, "here": 7}}
    assert note["data"][0]["source"] == "file"
    assert note["final_loss"] == pytest.approx(np.mean([x["loss"] for x in lines(out)]))
    assert note["provenance"]["dtype"] == "float32"
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in (out / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    assert not list(out.rglob("*.pt*")) and not list(out.rglob("*.bin"))


def test_the_provenance_is_taken_before_the_first_step(
    tiny_llama_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter's ``started`` was the moment it was finished."""
    steps: list[int] = []
    capture = training.capture_provenance

    def captured(*args: Any) -> Any:
        metrics = tmp_path / "out" / "metrics.jsonl"
        steps.append(len(metrics.read_text().splitlines()) if metrics.exists() else 0)
        return capture(*args)

    monkeypatch.setattr(training, "capture_provenance", captured)
    run("mntp", tiny_llama_dir, text, tmp_path / "out")
    assert steps == [0] and len(lines(tmp_path / "out")) == 6


def test_learning_rate_follows_the_horizon_not_the_steps(
    tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = run("mntp", tiny_llama_dir, text, tmp_path / "out", steps=3, warmup_steps=2)
    rates = [line["learning_rate"] for line in lines(out)]
    assert rates == pytest.approx([0.0, 0.5e-2, 1e-2])
    out = run("mntp", tiny_llama_dir, text, tmp_path / "out2", steps=3)
    assert [x["learning_rate"] for x in lines(out)] == pytest.approx(
        [1e-2 * (50 - step) / 50 for step in range(3)]
    )


def test_adapter_as_saved_gives_the_trained_states(
    tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = run("mntp", tiny_llama_dir, text, tmp_path / "out")
    plain, _ = load_backbone(tiny_llama_dir, dtype="float32", device="cpu")
    ids = torch.arange(5, 25)[None]
    before = plain(ids).last_hidden_state.detach()
    merged = merge_adapter(plain, out)(ids).last_hidden_state.detach()
    body, _ = load_backbone(tiny_llama_dir, dtype="float32", device="cpu")
    trained = add_lora(body, LORA, seed=0).eval()
    saved = load_file(out / "run" / "checkpoint-6" / "lora.safetensors")
    outcome = trained.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in saved.items()}, strict=False
    )
    assert not outcome.unexpected_keys
    full = trained(ids).last_hidden_state.detach()
    moved = (full - before).abs().max()
    assert moved > 0.1
    assert (full - merged).abs().max() < 0.05 * moved  # bfloat16 against float32 weights


@pytest.mark.parametrize("stage", ["mntp", "bi-simcse"])
def test_same_seed_same_bits(stage: str, tiny_llama_dir: Path, text: Path, tmp_path: Path) -> None:
    one = run(stage, tiny_llama_dir, text, tmp_path / "one")
    two = run(stage, tiny_llama_dir, text, tmp_path / "two")
    other = run(stage, tiny_llama_dir, text, tmp_path / "other", seed=1)
    assert adapter(one) == adapter(two)
    assert [x["loss"] for x in lines(one)] == [x["loss"] for x in lines(two)]
    assert adapter(one) != adapter(other)


# --------------------------------------------------------------------------- refusals
def test_other_settings_in_the_same_folder_are_refused(
    tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = run("mntp", tiny_llama_dir, text, tmp_path / "out", steps=4)
    before = snapshot(out)
    with pytest.raises(SettingError, match=r"learning_rate was 0.01, now 0.5"):
        run("mntp", tiny_llama_dir, text, out, steps=4, learning_rate=0.5)
    with pytest.raises(SettingError, match="already trained for 4 steps"):
        run("mntp", tiny_llama_dir, text, out, steps=2)
    with pytest.raises(SettingError, match="stage was 'mntp', now 'bi-simcse'"):
        run("bi-simcse", tiny_llama_dir, text, out)
    text.write_text("\n".join(reversed(TEXTS)), encoding="utf-8")
    with pytest.raises(SettingError, match="data_hash"):
        run("mntp", tiny_llama_dir, text, out, steps=4)
    assert snapshot(out) == before
    # The same without the finished adapter: the run itself knows its settings.
    (out / "adapter_model.safetensors").unlink()
    with pytest.raises(SettingError, match="holds another run"):
        run("mntp", tiny_llama_dir, text, out, steps=4, learning_rate=0.5)
    # And an adapter of unknown origin is not overwritten.
    shutil.rmtree(out / "run")
    (out / "provenance.json").unlink()
    (out / "adapter_model.safetensors").write_bytes(b"somebody's")
    with pytest.raises(SettingError, match="holds another run"):
        run("mntp", tiny_llama_dir, text, out, steps=4)


def test_damaged_checkpoint_is_named(tiny_llama_dir: Path, text: Path, tmp_path: Path) -> None:
    out = run("mntp", tiny_llama_dir, text, tmp_path / "out", steps=4)
    file = out / "run" / "checkpoint-4" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"optimizer.safetensors: damaged .* delete"):
        run("mntp", tiny_llama_dir, text, out, steps=6)


def test_loss_that_is_no_number_stops_the_run(
    tiny_llama_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm2vec.mntp import MNTPModel

    good, calls = MNTPModel.forward, []

    def bad(self, input_ids, labels):
        calls.append(1)  # two micro-batches a step: the sixth call is in step 3
        return good(self, input_ids, labels) * (float("nan") if len(calls) == 6 else 1.0)

    whole = run("mntp", tiny_llama_dir, text, tmp_path / "whole")
    monkeypatch.setattr(MNTPModel, "forward", bad)
    with pytest.raises(TrainingError, match="loss became nan in step 3"):
        run("mntp", tiny_llama_dir, text, tmp_path / "out")
    monkeypatch.setattr(MNTPModel, "forward", good)
    out = tmp_path / "out"
    assert [p.name for p in (out / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    run("mntp", tiny_llama_dir, text, out)
    assert adapter(out) == adapter(whole)


def test_folder_that_cannot_be_written_is_an_error(
    tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(SettingError, match="cannot write to"):
        run("mntp", tiny_llama_dir, text, file / "out")


# --------------------------------------------------------------------------- dropout
@given(p=st.floats(0.01, 0.9), odd=st.integers(1, 7))
def test_cpu_dropout_is_dropout(p: float, odd: int) -> None:
    torch.manual_seed(odd)
    x = torch.ones(300, 100 + odd, requires_grad=True)
    layer = CPUDropout(p)
    y = layer(x)
    kept = y != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.02)
    assert torch.allclose(y[kept], torch.tensor(1 / (1 - p)), rtol=1e-5)
    for part in range(4):  # each of the four that share a random number, and each with its next
        assert float(kept.ravel()[part::4].float().mean()) == pytest.approx(1 - p, abs=0.03)
    both = (kept.ravel()[:-1] & kept.ravel()[1:]).float().mean()
    assert float(both) == pytest.approx((1 - p) ** 2, abs=0.03)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert torch.equal(layer.eval()(x), x)
