"""SimCSE: loss, two views by dropout, pooling over the text, gradient caching, start."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_help import LORA, SIMCSE_SETTINGS, TEXTS, run, tiny_model, write_texts

from llm2vec import gradcache, simcse
from llm2vec.attention import set_attention
from llm2vec.errors import AdapterError, DataError, SettingError
from llm2vec.loading import load_backbone, merge_adapter
from llm2vec.lora import add_lora
from llm2vec.registry import get_variant
from llm2vec.simcse import (
    Padder,
    SimCSEModel,
    contrastive_loss,
    parts_by_length,
    parts_of_batch,
    set_attention_dropout,
    tokenize_sentences,
)
from llm2vec.stage import Options, Stream, seed_dropout

GOLDEN = Path(__file__).parent / "golden" / "upstream_losses.npz"


# --------------------------------------------------------------------------- loss
def test_golden_loss_of_the_published_code() -> None:
    golden = np.load(GOLDEN)
    a, b = (torch.from_numpy(golden[f"simcse_{k}"]) for k in "ab")
    ours = float(contrastive_loss(a, b, scale=20.0))
    assert ours == pytest.approx(float(golden["simcse_loss"]), abs=1e-5)


@given(n=st.integers(1, 6), seed=st.integers(0, 100), factor=st.floats(0.1, 10))
def test_loss_ignores_order_and_length_of_vectors(n: int, seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, 8, generator=generator)
    order = torch.randperm(n, generator=generator)
    loss = contrastive_loss(a, b, 20.0)
    assert loss >= -1e-6
    assert torch.allclose(loss, contrastive_loss(a[order] * factor, b[order], 20.0), atol=1e-4)


def test_loss_of_known_vectors() -> None:
    eye = torch.eye(4)
    expected = -np.log(np.exp(20) / (np.exp(20) + 3))
    assert float(contrastive_loss(eye, eye, 20.0)) == pytest.approx(expected, abs=1e-7)
    assert float(contrastive_loss(eye, torch.ones(4, 4), 20.0)) == pytest.approx(np.log(4))


# --------------------------------------------------------------------------- dropout
def test_attention_dropout_reaches_every_layer_and_makes_two_views(tiny_llama) -> None:
    backbone = tiny_llama.model.base_model
    set_attention(backbone, True)
    assert set_attention_dropout(backbone, 0.3) == backbone.config.num_hidden_layers == 2
    assert backbone.config.attention_dropout == 0.3
    no_lora_dropout = replace(LORA, dropout=0.0)
    stage = SimCSEModel(add_lora(backbone, no_lora_dropout, 0))
    ids = torch.arange(5, 25).repeat(2, 1)
    ones = torch.ones_like(ids).bool()
    views = stage.train()(ids, ones, ones)
    assert not torch.allclose(views[0], views[1], atol=1e-3)
    views = stage.eval()(ids, ones, ones)
    assert torch.equal(views[0], views[1])


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_the_two_views_of_a_run_differ_by_attention_dropout(
    probability: float, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
        seen.append((a.detach(), b.detach()))
        return contrastive_loss(a, b, scale)

    monkeypatch.setattr(simcse, "contrastive_loss", watched)
    run(
        "bi-simcse", tiny_llama_dir, write_texts(tmp_path), tmp_path / "out", steps=1,
        attention_dropout=probability, lora=replace(LORA, dropout=0.0),
    )  # fmt: skip
    ((a, b),) = seen
    assert len(a) == SIMCSE_SETTINGS.batch_size
    gap = (a - b).abs().amax(1)
    assert (gap > 1e-2).all() if probability else (gap < 1e-5).all()
    own = torch.cosine_similarity(a, b)
    assert (own > torch.cosine_similarity(a, b.roll(1, 0))).float().mean() > 0.5  # rows belong


def test_backbone_without_attention_dropout_is_an_error() -> None:
    with pytest.raises(SettingError, match="no attention dropout"):
        set_attention_dropout(torch.nn.Linear(2, 2), 0.3)


def test_dropout_is_a_function_of_seed_position_and_part() -> None:
    def drawn(*key: int) -> torch.Tensor:
        seed_dropout(*key)
        return torch.rand(4)

    assert torch.equal(drawn(1, 2, 3), drawn(1, 2, 3))
    assert len({tuple(drawn(*key).tolist()) for key in ((1, 2, 3), (1, 3, 2), (2, 1, 3))}) == 3


# --------------------------------------------------------------------------- batches
@given(lengths=st.lists(st.integers(1, 128), min_size=1, max_size=60), limit=st.integers(16, 2000))
def test_parts_hold_every_row_once_within_the_limit(lengths: list[int], limit: int) -> None:
    parts = parts_by_length(lengths, limit)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or 2 * max(lengths[i] for i in part) * len(part) <= limit
    assert [lengths[p[0]] for p in parts] == sorted((lengths[p[0]] for p in parts), reverse=True)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), more=st.integers(0, 12))
def test_parts_split_further_hold_the_same_rows_in_order(sizes: list[int], more: int) -> None:
    parts = [[(p, row) for row in range(size)] for p, size in enumerate(sizes)]
    number = min(len(parts) + more, sum(sizes))  # another process may have that many
    split = simcse.split_further(parts, number)
    assert len(split) == number and all(split)
    assert [row for part in split for row in part] == [row for part in parts for row in part]
    assert all(len({p for p, _ in part}) == 1 for part in split)


def test_a_run_is_a_plain_training_loop(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Without dropout: sentences one by one, mean of their states, cosine times 20, AdamW."""
    lora, steps, size = replace(LORA, dropout=0.0), 3, SIMCSE_SETTINGS.batch_size
    out = run(
        "bi-simcse", tiny_llama_dir, write_texts(tmp_path), tmp_path / "out",
        lora=lora, steps=steps, attention_dropout=0.0,
    )  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    backbone, tokenizer = load_backbone(tiny_llama_dir, dtype="float32", device="cpu")
    set_attention(backbone, True)
    stream = Stream(TEXTS, steps * size, SIMCSE_SETTINGS.seed)
    body = add_lora(backbone, lora, SIMCSE_SETTINGS.seed)
    trained = {n: p for n, p in body.named_parameters() if p.requires_grad}
    adam = torch.optim.AdamW(trained.values(), weight_decay=0.0)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / 50)
        texts = [stream[step * size + i][1] for i in range(size)]
        ids = [torch.tensor([tokenizer(t)["input_ids"][:24]]) for t in texts]
        vectors = torch.cat([body(i).last_hidden_state[:, 1:].mean(1) for i in ids])
        likeness = torch.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
        loss = torch.nn.functional.cross_entropy(20 * likeness, torch.arange(size))
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        adam.step()
        assert rows[step]["loss"] == pytest.approx(float(loss.detach()), rel=1e-3)
        assert rows[step]["grad_norm"] == pytest.approx(float(norm), rel=1e-2)
    saved = load_file(out / "run" / f"checkpoint-{steps}" / "lora.safetensors")
    for name, parameter in trained.items():
        gap = (saved[f"backbone.{name}"] - parameter.detach()).abs().max()
        assert gap < 1e-3, name  # a weight moves by up to 3e-2


def test_vectors_are_means_over_the_text_whatever_the_padding(tiny_llama) -> None:
    model, tokenizer = tiny_llama
    backbone = model.base_model
    set_attention(backbone, True)
    stage = SimCSEModel(add_lora(backbone, LORA, 0)).eval()
    tokens = tokenize_sentences(["The quick fox.", "A dog."] * 3, tokenizer, SIMCSE_SETTINGS)[:2]
    assert [t.span[0] for t in tokens] == [False, False]  # BOS is not pooled
    assert all(all(t.span[1:]) for t in tokens)
    batch = Padder(tokenizer)(list(enumerate(tokens)))
    batch.pop("position")
    together = stage(**batch)
    ids = torch.tensor(tokens[1].ids)[None]
    alone = backbone(input_ids=ids).last_hidden_state[0, 1:].mean(0)
    assert batch["mask"][1].sum() < batch["mask"].shape[1]
    assert torch.allclose(together[1], alone, atol=1e-5)


def test_pool_over_padding_is_the_mean_of_all_positions_padded_left(tiny_llama) -> None:
    tokenizer = tiny_llama.tokenizer
    tokens = tokenize_sentences(["The quick fox.", "A dog."] * 3, tokenizer, SIMCSE_SETTINGS)[:2]
    batch = Padder(tokenizer, left=True)(list(enumerate(tokens)))
    n = len(tokens[1].ids)
    assert batch["input_ids"][1, -n:].tolist() == tokens[1].ids
    assert (batch["input_ids"][1, :-n] == tokenizer.pad_token_id).all()
    assert batch["mask"][1].tolist() == [False] * (len(tokens[0].ids) - n) + [True] * n


def test_pool_over_padding_changes_the_run(tiny_llama_dir: Path, tmp_path: Path) -> None:
    text = write_texts(tmp_path)
    losses = []
    for whole in (False, True):
        out = run(
            "bi-simcse", tiny_llama_dir, text, tmp_path / str(whole), steps=1,
            pool_over_padding=whole,
        )  # fmt: skip
        losses.append(json.loads((out / "metrics.jsonl").read_text())["loss"])
    assert abs(losses[0] - losses[1]) > 1e-3


def test_too_few_sentences_are_an_error(tiny_llama) -> None:
    with pytest.raises(DataError, match="too short: 2 sentences"):
        tokenize_sentences(["One.", "", "Two."], tiny_llama.tokenizer, SIMCSE_SETTINGS)


@pytest.mark.parametrize(("device", "real"), [("cuda", 0.65), ("cpu", 0.9)])
def test_parts_of_a_batch_are_mostly_sentences(
    device: str, real: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, too, where a whole batch would fit and half of it would be padding."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    lengths = np.random.default_rng(0).lognormal(3.3, 0.6, 128).round().clip(5, 128).astype(int)
    parts = parts_of_batch(lengths.tolist(), Options())
    through = sum(len(rows) * lengths[rows[0]] for rows in parts)
    assert len(parts) > 1 and lengths.sum() > real * through
    assert device == "cpu" or len(parts) <= 4


# --------------------------------------------------------------------------- gradient caching
def gradients(make_tiny_llama, parts: list[list[int]], cache: bool, dropout: bool) -> dict:
    """Gradients of one batch of eight sentences, run in the given parts."""
    model, tokenizer = make_tiny_llama()
    backbone = model.base_model
    set_attention(backbone, True)
    set_attention_dropout(backbone, 0.3 if dropout else 0.0)
    lora = LORA if dropout else replace(LORA, dropout=0.0)
    stage = SimCSEModel(add_lora(backbone, lora, 0)).train()
    for name, parameter in stage.named_parameters():
        if "lora_B" in name:  # zero at the start, when nothing would flow into A
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    tokens = tokenize_sentences(TEXTS[:8], tokenizer, SIMCSE_SETTINGS)
    batch = Padder(tokenizer)(list(enumerate(tokens)))
    batch.pop("position")
    runs = []

    def encode(part: int) -> torch.Tensor:
        runs.append(torch.is_grad_enabled())
        seed_dropout(0, 0, part)
        return stage(**{k: v[parts[part]].repeat(2, 1) for k, v in batch.items()})

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        split = vectors.split([2 * len(p) for p in parts])
        # Different targets for the views, or equal views would make a symmetric problem.
        a = torch.cat([p.chunk(2)[0] for p in split])
        b = torch.cat([p.chunk(2)[1] for p in split])
        return contrastive_loss(a, b * torch.linspace(0.5, 1.5, b.shape[1]), 20.0)

    loss = gradcache.backward(encode, len(parts), loss_of, cache=cache, no_sync=nullcontext)
    named = {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}
    return {"loss": loss, "runs": runs} | named


def assert_same(one: dict, two: dict) -> None:
    names = [n for n in one if n != "runs"]
    assert names == [n for n in two if n != "runs"] and len(names) == 1 + 28
    largest = max(one[n].abs().max() for n in names[1:])
    for name in names:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5 * largest), name


def test_caching_in_parts_gives_the_gradients_of_one_pass(make_tiny_llama) -> None:
    whole = gradients(make_tiny_llama, [list(range(8))], cache=False, dropout=False)
    parts = [[0, 1, 2], [3, 4], [5, 6, 7]]
    cached = gradients(make_tiny_llama, parts, cache=True, dropout=False)
    kept = gradients(make_tiny_llama, parts, cache=False, dropout=False)
    assert cached["runs"] == [False] * 3 + [True] * 3  # no activations in the first round
    assert kept["runs"] == [True] * 3
    assert_same(whole, cached)
    assert_same(whole, kept)


def test_caching_replays_dropout(make_tiny_llama) -> None:
    parts = [[0, 1, 2], [3, 4], [5, 6, 7]]
    cached = gradients(make_tiny_llama, parts, cache=True, dropout=True)
    kept = gradients(make_tiny_llama, parts, cache=False, dropout=True)
    off = gradients(make_tiny_llama, parts, cache=True, dropout=False)
    assert_same(cached, kept)
    assert abs(cached["loss"] - off["loss"]) > 1e-3


@pytest.mark.parametrize("pool_over_padding", [False, True])
def test_a_run_does_not_depend_on_caching(
    pool_over_padding: bool, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    text = write_texts(tmp_path)
    norms = []
    for caching in (True, False):
        out = run(
            "bi-simcse", tiny_llama_dir, text, tmp_path / str(caching),
            {"caching": caching, "max_tokens": 96}, steps=3, pool_over_padding=pool_over_padding,
        )  # fmt: skip
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        norms.append([(row["loss"], row["grad_norm"]) for row in rows])
    assert np.allclose(norms[0], norms[1], rtol=1e-3)


# --------------------------------------------------------------------------- where it starts
def test_mntp_is_merged_before_and_named_in_the_provenance(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm2vec.adapters import adapter_hash

    text = write_texts(tmp_path)
    mntp = run("mntp", tiny_llama_dir, text, tmp_path / "mntp")
    monkeypatch.setattr(simcse, "adapter_folder", lambda model, stage: tmp_path / stage)
    model, options = tiny_model(tiny_llama_dir), Options(dtype="float32", device="cpu")
    variant = get_variant("bi-mntp-simcse")
    stage, _, merged = simcse.build(model, variant, SIMCSE_SETTINGS, options)
    assert merged == (adapter_hash(mntp),)
    backbone, _ = load_backbone(tiny_llama_dir, dtype="float32", device="cpu")
    set_attention(backbone, True)
    ids = torch.arange(5, 25)[None]
    untrained = backbone(ids).last_hidden_state
    expected = merge_adapter(backbone, mntp)(ids).last_hidden_state
    assert torch.allclose(stage.eval().states(ids), expected, atol=1e-5)  # new LoRA starts at zero
    assert not torch.allclose(untrained, expected, atol=0.1)

    out = run("bi-mntp-simcse", tiny_llama_dir, text, tmp_path / "out")
    note = json.loads((out / "provenance.json").read_text())
    assert note["merged_before"] == [adapter_hash(mntp)] and note["stage"] == "mntp-simcse"
    # Another MNTP adapter underneath is another run.
    other = run("mntp", tiny_llama_dir, text, tmp_path / "other", seed=5)
    monkeypatch.setattr(simcse, "adapter_folder", lambda model, stage: other)
    with pytest.raises(SettingError, match="merged was"):
        run("bi-mntp-simcse", tiny_llama_dir, text, tmp_path / "out")


def test_adapter_of_another_model_or_stage_is_refused(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_texts(tmp_path)
    bi = run("bi-simcse", tiny_llama_dir, text, tmp_path / "bi", steps=1)
    monkeypatch.setattr(simcse, "adapter_folder", lambda model, stage: bi)
    with pytest.raises(AdapterError, match="an adapter of stage 'bi-simcse', not 'mntp'"):
        run("bi-mntp-simcse", tiny_llama_dir, text, tmp_path / "out")
    note = json.loads((bi / "provenance.json").read_text()) | {"model": "llama-2-7b"}
    (bi / "provenance.json").write_text(json.dumps(note | {"stage": "mntp"}))
    with pytest.raises(AdapterError, match="trained for llama-2-7b"):
        run("bi-mntp-simcse", tiny_llama_dir, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_uni_stays_causal(tiny_llama_dir: Path) -> None:
    model, options = tiny_model(tiny_llama_dir), Options(dtype="float32", device="cpu")
    ids = torch.arange(5, 15)[None].repeat(2, 1)
    ids[1, -1] = 99
    for name, moved in (("uni-simcse", False), ("bi-simcse", True)):
        stage, _, merged = simcse.build(model, get_variant(name), SIMCSE_SETTINGS, options)
        with torch.no_grad():
            states = stage.eval().states(ids)
        assert (not torch.equal(states[0, :-1], states[1, :-1])) == moved, name
        assert merged == ()


def test_variant_without_simcse_is_an_error(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no SimCSE stage"):
        run("bi-mntp", tiny_llama_dir, tmp_path / "none", tmp_path / "out")
