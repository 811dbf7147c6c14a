"""The attention sink: what is left out of the mean, what is measured of the first position."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import training_help
from tiny_mirror import PAIRS

from llm2vec import ablations, attention_sink, leakage, loading, registry, sts_pairs
from llm2vec.attention_sink import pool_without
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.registry import get_task
from llm2vec.registry_ablations import Ablation, Measured
from llm2vec.registry_sink import CONTROL, INSTRUCTED, PLAIN, Left
from llm2vec.representations import without_first
from llm2vec.results import read_record

INSTRUCTION = "Read what the dog does:"
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "A dog sleeps",
    "One after another, the words are read from left to right by a model.",
)


def states_of(encoder: LLM2Vec, instruction: str, text: str) -> tuple[np.ndarray, list[int]]:
    """States (l, d) of one text run alone, and where it begins: counted, not by offsets."""
    tokenizer = encoder.tokenizer
    ids = tokenizer(f"{instruction} {text}" if instruction else text)["input_ids"]
    head = tokenizer(f"{instruction} " if instruction else "")["input_ids"]
    with torch.no_grad():
        states = encoder.backbone(torch.tensor([ids])).last_hidden_state[0]
    return states.numpy(), list(range(len(head), len(ids)))


# --------------------------------------------------------------------------- what is left out
@pytest.mark.parametrize("variant", ["uni", "bi"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_means_equal_those_taken_by_hand(
    make_encoder: Callable[..., LLM2Vec], variant: str, add_bos: bool
) -> None:
    encoder = make_encoder(variant, add_bos=add_bos)
    for lefts in (PLAIN, INSTRUCTED + CONTROL):
        instruction = INSTRUCTION if lefts[0].instruction else ""
        found = pool_without(encoder, [(instruction, text) for text in TEXTS], lefts)
        for row, text in enumerate(TEXTS):
            states, span = states_of(encoder, instruction, text)
            for left in lefts:
                if left.of == "text":
                    pooled = span[left.first :]
                else:
                    pooled = [p for p in span if p >= left.first]
                np.testing.assert_allclose(
                    found.vectors[left][row], states[pooled].mean(0), atol=1e-5
                )
    # a BOS is a position of the sequence, and is never pooled
    plain = pool_without(encoder, [("", text) for text in TEXTS], PLAIN).vectors
    assert np.array_equal(plain[Left(0)], plain[Left(1)]) == add_bos
    assert not np.allclose(plain[Left(0)], plain[Left(4)], atol=1e-3)


def test_with_nothing_left_out_it_is_the_encoders_own_mean(
    make_encoder: Callable[..., LLM2Vec],
) -> None:
    encoder = make_encoder()
    pairs = [(INSTRUCTION, text) for text in (*TEXTS, TEXTS[0])]
    found = pool_without(encoder, pairs, INSTRUCTED)
    expected = encoder.encode_poolings(pairs, ("mean",))["mean"]
    for left in INSTRUCTED:  # the instruction is longer than four tokens
        np.testing.assert_array_equal(found.vectors[left], expected)


def test_neither_batch_nor_padding_matters(make_encoder: Callable[..., LLM2Vec]) -> None:
    encoder = make_encoder()
    pairs = [("", text) for text in TEXTS]
    together = pool_without(encoder, pairs, PLAIN)
    encoder.max_tokens = 1
    apart = pool_without(encoder, pairs, PLAIN)
    assert (apart.cost["padding_tokens"], together.cost["padding_tokens"] > 0) == (0, True)
    assert apart.cost["tokens"] == together.cost["tokens"]
    for left in PLAIN:
        np.testing.assert_allclose(apart.vectors[left], together.vectors[left], atol=1e-5)
    for one, other in zip(
        dataclasses.astuple(apart.sink), dataclasses.astuple(together.sink), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_the_last_token_of_a_short_text_stays_and_is_counted(
    make_encoder: Callable[..., LLM2Vec],
) -> None:
    encoder = make_encoder()
    found = pool_without(encoder, [("", "dog"), ("", TEXTS[0])], PLAIN)
    states, span = states_of(encoder, "", "dog")
    assert 1 < len(span) <= 4
    np.testing.assert_allclose(found.vectors[Left(4)][0], states[-1], atol=1e-5)
    assert found.kept == {Left(0): 0, Left(1): 0, Left(4): 1}


@pytest.mark.parametrize("first", [-1, 1.0, True, "1", None])
def test_what_cannot_be_left_out_is_refused(
    make_encoder: Callable[..., LLM2Vec], first: Any
) -> None:
    with pytest.raises(SettingError, match="whole number, 0 or more"):
        without_first([0, 1], first)
    with pytest.raises(SettingError, match=f"first {first!r} positions"):
        pool_without(make_encoder(), [("", "dog")], [Left(first)])


def test_positions_without_the_first() -> None:
    assert without_first([2, 3, 5], 0) == without_first([2, 3, 5], 2) == [2, 3, 5]
    assert without_first([2, 3, 5], 3) == [3, 5]
    assert without_first([2, 3, 5], 9) == [5]


# --------------------------------------------------------------------------- the first position
def test_ratio_of_norms_looks_at_no_padding() -> None:
    lengths = [[8.0, 1, 2, 3, float("inf")], [3.0, 6, 1e9, 1e9, 1e9]]
    states = torch.tensor(lengths).unsqueeze(-1) * torch.tensor([0.6, 0.8])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    first, largest = attention_sink._norm_ratios(states, mask)
    assert first.tolist() == pytest.approx([4.0, 0.5])
    assert largest.tolist() == pytest.approx([4.0, 1.0])
    alone, _ = attention_sink._norm_ratios(states[:, :1], mask[:, :1])
    assert alone.isnan().all()


def test_shares_add_up_and_a_large_state_has_a_large_one() -> None:
    hidden = torch.zeros(2, 4, 3)
    hidden[0] = torch.tensor([[9.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
    hidden[1] = torch.tensor([[9.0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]])
    span = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool()
    share, even = attention_sink._shares(hidden, span)
    # p = (10, 1, 0) / 3, so h_1 . p / (3 p . p) = 30 / (101 / 3)
    assert share.tolist() == pytest.approx([90 / 101, 0])
    assert even.tolist() == pytest.approx([1 / 3, 1 / 3])
    others = [attention_sink._shares(hidden[:1, [i, *rest]], span[:1])[0].item()
              for i, rest in ((1, [0, 2, 3]), (2, [0, 1, 3]))]  # fmt: skip
    assert share[0].item() + sum(others) == pytest.approx(1)


def test_a_grown_first_state_is_seen_at_its_layer(make_encoder: Callable[..., LLM2Vec]) -> None:
    encoder = make_encoder("uni")

    block = encoder.backbone.layers[0]
    forward = block.forward

    def grow(*inputs: Any, **options: Any) -> torch.Tensor:
        states = forward(*inputs, **options)
        return states * torch.where(torch.arange(states.shape[1]) == 0, 50.0, 1.0)[:, None]

    before = pool_without(encoder, [("", text) for text in TEXTS], PLAIN).sink.summary()
    block.forward = grow
    found = pool_without(encoder, [("", text) for text in TEXTS], PLAIN).sink.summary()
    assert len(found["norm_ratio_by_layer"]) == 1  # of two blocks; the last is pooled
    grown = found["norm_ratio_by_layer"][0] / before["norm_ratio_by_layer"][0]
    assert grown == pytest.approx(50, rel=1e-3)
    assert found["norm_ratio"] < 5  # the final norm takes it back
    assert found["largest_ratio_by_layer"] == pytest.approx(found["norm_ratio_by_layer"])
    assert before["largest_ratio_by_layer"][0] > before["norm_ratio_by_layer"][0]


# --------------------------------------------------------------------------- records
@pytest.fixture
def small(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny decoder as model ``tiny`` and a mirror of 30 pairs; returns the results folder."""
    model = dataclasses.replace(training_help.tiny_model(tiny_llama_dir), name="tiny")
    for module in (registry, loading):
        monkeypatch.setattr(module, "MODELS", {"tiny": model})
    folder = tmp_path / "mirror" / get_task("STSBenchmark").dataset
    folder.mkdir(parents=True)
    rows = [(f"{a} {i}", f"{b} {i}", s) for i in range(5) for a, b, s in PAIRS]
    frame = pd.DataFrame(rows, columns=["sentence1", "sentence2", "score"])
    frame.to_parquet(folder / "validation.parquet")
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    monkeypatch.setattr(sts_pairs, "RESAMPLES", 20)
    own = leakage.TripleSet(leakage.load_triples().triples[:12], "0" * 64)
    monkeypatch.setattr(leakage, "load_triples", lambda: own)
    return tmp_path / "results"


def names(files: Sequence[Path]) -> list[str]:
    return [file.name.removesuffix(".json") for file in files]


def test_every_pass_writes_a_record_for_each_thing_left_out(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = attention_sink.plan("tiny", "bi")
    files = attention_sink.execute(run, small, "cpu")
    kinds = [f"{start}-without-first-{k}" for start in ("no-instruction", "instruction")
             for k in (0, 1, 4)]  # fmt: skip
    control = [f"instruction-without-text-first-{k}" for k in (1, 4)]
    assert names(files) == [
        *(f"STSBenchmark@{kind}" for kind in kinds + control),
        *(f"triples@{kind}" for kind in kinds[:3]),
    ]
    assert {f.relative_to(small).parent.as_posix() for f in files} == {
        "raw/attention_sink/tiny/bi/mean"
    }
    records = {record.key.path(small).stem: record for record in map(read_record, files)}
    for name, record in records.items():
        low, high = record.scores["difference_interval"]
        assert low <= record.scores["difference"] <= high
        whole = records[name.replace("text-", "").rpartition("-")[0] + "-0"]
        assert record.cost == whole.cost
        gap = "gap" if record.task == "triples" else None
        ours, theirs = (r.scores["gap"] if gap else r.score for r in (record, whole))
        assert record.scores["difference"] == pytest.approx(ours - theirs, abs=1e-6)
        assert record.hyperparameters["without_first"] == int(name[-1])
    first = records["STSBenchmark@no-instruction-without-first-0"].scores["first_position"]
    assert 0 < first["even_share"] < 1 and first["norm_ratio"] > 0

    monkeypatch.setattr(attention_sink, "_load", lambda *_: pytest.fail("loaded again"))
    assert attention_sink.execute(run, small, "cpu") == files
    files[1].unlink()
    with pytest.raises(pytest.fail.Exception, match="loaded again"):
        attention_sink.execute(run, small, "cpu")


def test_the_whole_span_scores_as_everywhere_else(small: Path) -> None:
    """Behind the instruction as the ablations score the same pairs; triples as the analysis."""
    attention_sink.execute(attention_sink.plan("tiny", "bi"), small, "cpu")
    measured = Measured("STSBenchmark", "validation", 750)
    ablation = Ablation("mntp-x", "bi", {}, {}, (measured,))
    (planned,) = ablations.plan("tiny", [ablation], "cpu")
    expected = ablations.measure(planned, measured, None)
    folder = small / "raw/attention_sink/tiny/bi/mean"
    found = read_record(folder / "STSBenchmark@instruction-without-first-0.json")
    assert (found.score, found.interval, found.n) == (
        expected.score, expected.interval, expected.n,
    )  # fmt: skip
    encoder = attention_sink._load(attention_sink.plan("tiny", "bi"), "cpu")
    own = leakage.load_triples().triples
    alone = leakage.summarise(leakage.prefix_cosines(encoder.backbone, encoder.tokenizer, own))
    record = read_record(folder / "triples@no-instruction-without-first-0.json")
    assert (record.score, record.scores["gap"]) == (alone["score"], alone["scores"]["gap"])


def test_names_that_do_not_fit_are_refused() -> None:
    for model, variant in (("minilm-l6", "encoder"), ("smollm2-135m", "echo")):
        with pytest.raises(SettingError, match=f"{model} {variant} does not pool"):
            attention_sink.plan(model, variant)
    with pytest.raises(UnknownNameError, match="float32, bfloat16, float16"):
        attention_sink.plan("smollm2-135m", "bi", dtype="float23")
    with pytest.raises(UnknownNameError, match="own, published"):
        attention_sink.plan("smollm2-135m", "bi", adapters="theirs")
    key = attention_sink.plan("smollm2-135m", "bi-mntp", "published", "bfloat16").key(
        "STSBenchmark", Left(1)
    )
    assert key.setting == "no-instruction-without-first-1-bfloat16-published"
