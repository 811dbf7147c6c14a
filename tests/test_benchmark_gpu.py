"""The GPU benchmark, on a CPU with a tiny model: its formula, its steps, its table."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from latex_check import check_latex
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from analysis import tables_gpu, tables_performance
from analysis.render import to_csv, to_markdown, to_tex
from benchmarks import __main__ as whole
from benchmarks import gpu, gpu_work
from benchmarks.gpu_work import MASK, TINY, Plan, random_model
from llm2vec import batching, console
from llm2vec.registry import LoRA
from llm2vec.stage import Stage

KEYS = {"tokens", "seconds", "tokens_per_second", "share_of_limit", "flops", "warm_up_seconds"}


# --------------------------------------------------------------------------- operations
def counted(work: gpu_work.Work, backward: bool = True) -> int:
    """Operations that torch itself counts; its mathematical attention is plain products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if backward:
            work.step(1)
        else:
            with torch.inference_mode():
                work.step(1)
    return counter.get_total_flops()


def lora_products(config: dict[str, Any], tokens: int) -> float:
    """LoRA's own products: two per module forward, each again for weights and for activations.

    Nothing in front of the first layer's queries, keys and values wants a gradient.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    outputs = [hidden, keys, keys, hidden, inner, inner, hidden]
    inputs = [hidden] * 6 + [inner]
    all_layers = 6 * (sum(outputs) + sum(inputs)) * config["num_hidden_layers"]
    return LoRA().r * tokens * (all_layers - 2 * 3 * hidden)


def test_the_formula_of_an_mntp_step_is_what_torch_counts() -> None:
    model = random_model("tiny", "cpu")
    config = model.config.to_dict()
    work = gpu_work.mntp_work(model, Plan("mntp", 8), TINY)
    expected = work.flops + lora_products(config, work.tokens)
    assert counted(work) == pytest.approx(expected, rel=1e-9)
    assert work.tokens == TINY.batch * TINY.block


def test_recomputation_is_work_but_not_useful() -> None:
    plans = [Plan("mntp", 8, checkpointing=again) for again in (False, True)]
    plain, again = (gpu_work.mntp_work(random_model("tiny", "cpu"), p, TINY) for p in plans)
    assert plain.flops == again.flops
    assert counted(again) > 1.2 * counted(plain)


def test_the_formula_of_a_simcse_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without padding; products of pooling and of the loss, which it leaves out, are per cents."""
    monkeypatch.setattr(gpu_work, "sentence_lengths", lambda count, _: [20] * count)
    model = random_model("tiny", "cpu")
    work = gpu_work.simcse_work(model, Plan("simcse", 32), TINY)
    expected = work.flops + lora_products(model.config.to_dict(), work.tokens)
    assert counted(work) == pytest.approx(expected, rel=0.02)
    assert (work.tokens, work.padding) == (2 * 20 * TINY.sentences, 0)


def test_the_formula_of_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text a batch, so no padding; products of pooling, which it leaves out, are a per cent."""
    # torch does not count oneDNN's products, which the CPU would take.
    monkeypatch.setattr(batching, "faster_forwards", lambda _: {})
    work = gpu_work.encode_work(random_model("tiny", "cpu"), Plan("encode", 0), TINY)
    assert work.padding == 0
    assert counted(work, backward=False) == pytest.approx(work.flops, rel=0.02)


def test_padding_does_not_count() -> None:
    plans = [Plan("simcse", blocks) for blocks in (8, 64)]
    little, much = (gpu_work.simcse_work(random_model("tiny", "cpu"), p, TINY) for p in plans)
    assert much.padding > little.padding
    assert (much.tokens, much.flops) == (little.tokens, little.flops)


# --------------------------------------------------------------------------- the random model
def test_the_random_model_is_one_that_loading_would_give() -> None:
    model = random_model("tiny", "cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    rotary = model.base_model.rotary_emb
    expected = 1e6 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(rotary.inv_freq, expected)
    assert model(torch.arange(MASK, 9)[None]).logits.isfinite().all()
    assert 0.019 < float(model.lm_head.weight.detach().float().std()) < 0.021


def test_shapes_have_the_known_numbers_of_weights() -> None:
    """7.24 billion for Mistral-7B, 134.5 million for SmolLM2-135M."""
    sizes = {}
    for shape in ("mistral-7b", "smollm2"):
        model = random_model(shape, "meta")
        sizes[shape] = sum(p.numel() for p in model.parameters())
    assert sizes == {"mistral-7b": 7_241_732_096, "smollm2": 134_515_008}


def test_tied_weights_stay_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = gpu_work.SHAPES["tiny"] | {"tie_word_embeddings": True}
    monkeypatch.setitem(gpu_work.SHAPES, "tiny", tied)
    model = random_model("tiny", "cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_sentences_have_the_lengths_they_should() -> None:
    lengths = gpu_work.sentence_lengths(10_000, 128)
    assert (min(lengths), max(lengths)) == (5, 128)
    assert 30 < sum(lengths) / len(lengths) < 34


# --------------------------------------------------------------------------- a run
@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler, which takes half a minute a configuration on a CPU."""
    monkeypatch.setattr(Stage, "compile_layers", lambda self, dynamic=None: 0)


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(SystemExit) as stop:
        console.run(gpu.main)
    return stop.value.code


@pytest.mark.usefixtures("plain")
def test_a_run_measures_every_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--shape", "tiny", "--device", "cpu", "--steps", "1", "--output", str(tmp_path))
    assert start(monkeypatch, *options) == 0
    values = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["kind"], row["name"]) for row in values["rows"]] == [
        (plan.kind, plan.name) for plan in gpu.PLANS
    ]
    for row in values["rows"]:
        assert all(0 < row[key] < float("inf") for key in KEYS), row
        assert any("scaled_dot_product" in name for name in row["attention"]["operators"])
        if row["kind"] != "encode":  # LoRA's B begins at 0
            assert 1e-6 < row["largest_weight"] < 1e-2
            assert len(set(row["values"])) > 1
    assert values["device"]["name"] == values["provenance"]["device"] == "cpu"
    assert values["limits"]["flops_per_second"] > 0
    assert "checkpointing, 32 blocks a pass" in capsys.readouterr().out
    # Asked to be compiled, and was not: this must show.
    assert "Not compiled although asked to be: MNTP, compiled" in " ".join(
        tables_performance.gpu_of(values).notes
    )


@pytest.mark.usefixtures("plain")
def test_a_configuration_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = (Plan("mntp", 8), Plan("encode", 32))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room\nfor this")

    monkeypatch.setattr(gpu, "PLANS", plans)
    monkeypatch.setitem(gpu.WORKS, "mntp", fail)
    kept: list[int] = []
    found: dict[str, Any] = {}

    def keep(**parts: Any) -> None:
        found.update(parts)
        kept.append(len(parts["rows"]))

    gpu.measured_rows("tiny", "cpu", 1, 100, keep)
    failed, done = found["rows"]
    assert failed["error"] == "OutOfMemoryError: no room"
    assert done["seconds"] > 0
    assert kept == [0, 1, 2]  # written after each of them


def test_what_does_not_fit_into_the_time_is_named() -> None:
    found: dict[str, Any] = {}
    gpu.measured_rows("tiny", "cpu", 1, 0, lambda **parts: found.update(parts))
    assert [row["skipped"] for row in found["rows"]] == ["not finished within 0 s"] * len(gpu.PLANS)


def test_without_a_gpu_there_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start(monkeypatch, "--output", str(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs a CUDA GPU" in line
    assert "stays as it was" in line
    assert list(tmp_path.iterdir()) == []
    assert start(monkeypatch, "--device", "tpu") == 2


@pytest.mark.parametrize("driver", [None, "nvidia-smi"])
def test_the_whole_leaves_it_out_without_a_driver(
    monkeypatch: pytest.MonkeyPatch, driver: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Done:
        returncode = 0

    monkeypatch.setattr(whole.shutil, "which", lambda _: driver)
    monkeypatch.setattr(whole.subprocess, "run", lambda c, **_: asked.append(c[-1]) or Done)
    whole.main(None)
    assert ("benchmarks.gpu" in asked) == bool(driver)
    assert ("gpu is left out" in capsys.readouterr().err) == (not driver)
    whole.main(["gpu"])
    assert asked[-2] == "benchmarks.gpu"


# --------------------------------------------------------------------------- the table
def row_of(kind: str, blocks: int, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "name": f"{blocks} blocks a pass", "tokens": 900, "padding": 100,
            "seconds": 1.5, "warm_up_seconds": 20.0, "tokens_per_second": 600.0,
            "share_of_limit": 0.456, "peak_gb": 34.56,
            "attention": {"operators": ["aten::_scaled_dot_product_flash_attention"]},
            **more}  # fmt: skip


VALUES: dict[str, Any] = {
    "schema": 1, "benchmark": "gpu", "seeds": [0], "settings": {"shape": "mistral-7b"},
    "device": {"name": "a GPU", "memory_gb": 79.1}, "torch": "2.11",
    "machine": {"processor": "a processor", "cores": 2, "memory_gb": 8.0, "load": 0.1},
    "provenance": {"commit": "0123456789ab", "dirty": False, "started": "2026-01-02T03:04:05"},
    "limits": {"side": 8192, "flops_per_second": 8e14,
               "layers": [{"tokens": 2048, "flops_per_second": 6e14}]},
    "rows": [
        row_of("mntp", 4),
        {"kind": "simcse", "name": "32 blocks a pass", "error": "OutOfMemoryError: no room"},
        row_of("encode", 32),
        {"kind": "mntp", "name": "8 blocks a pass", "skipped": "70 s were over"},
    ],
}  # fmt: skip


def test_the_table_stands_beside_the_paper() -> None:
    table = tables_performance.gpu_of(VALUES)
    blank = "–"
    assert table.rows == [
        ["MNTP", "paper: one A100", *[blank] * 3, "100", *[blank] * 3],
        ["MNTP", "4 blocks a pass", "900", "10 %", "600", "25.0", "20.0", "34.6", "46 %"],
        ["MNTP", "8 blocks a pass", *[blank] * 7],
        ["SimCSE", "paper: one A100", *[blank] * 3, "180", *[blank] * 3],
        ["SimCSE", "32 blocks a pass", *[blank] * 7],
        ["encoding", "32 blocks a pass", "900", "10 %", "600", "", "", "34.6", "46 %"],
    ]
    assert table.breaks == {3, 5}
    notes = " ".join(table.notes)
    assert "on one a GPU, torch 2.11" in notes
    assert "800.0 TFLOP/s; the MLP's first product reaches 75% with 2,048 tokens" in notes
    assert "MNTP scaled_dot_product_flash_attention" in notes
    assert "SimCSE, 32 blocks a pass: OutOfMemoryError: no room; " in notes
    assert "MNTP, 8 blocks a pass: 70 s were over." in notes
    assert check_latex(to_tex(table)) >= len(table.rows) + 1
    assert to_csv(table).count("\n") == len(VALUES["rows"]) + 1


def test_another_shape_is_not_compared_with_the_paper() -> None:
    values = VALUES | {"settings": {"shape": "smollm2"}}
    assert "paper" not in to_markdown(tables_performance.gpu_of(values))


def test_without_a_limit_there_are_times_but_no_shares() -> None:
    rows = [row_of("mntp", 4, share_of_limit=None, peak_gb=None)]
    values = VALUES | {"limits": {"error": "RuntimeError: x"}, "rows": rows}
    table = tables_performance.gpu_of(values)
    assert table.rows[-1][-2:] == ["–", "–"]
    assert "could not be measured: RuntimeError: x" in " ".join(table.notes)


def test_every_kind_has_a_name() -> None:
    assert set(tables_gpu.KINDS) == set(gpu_work.WORKS)
