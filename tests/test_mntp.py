"""Masked next token prediction: blocks, masks, loss at the labels alone, accuracy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from training_help import LORA, MNTP_SETTINGS, TEXTS, run, write_texts
from transformers import PreTrainedTokenizerFast

from llm2vec.attention import set_attention
from llm2vec.errors import DataError, SettingError
from llm2vec.heads import check_head
from llm2vec.loading import load_backbone, merge_adapter
from llm2vec.lora import add_lora
from llm2vec.mntp import (
    IGNORED,
    Masker,
    MNTPModel,
    evaluate_masked_accuracy,
    make_blocks,
    mask_block,
    mask_token_id,
)
from llm2vec.registry import MNTP
from llm2vec.stage import Stream

GOLDEN = Path(__file__).parent / "golden" / "upstream_losses.npz"


# --------------------------------------------------------------------------- blocks
def test_every_document_has_its_own_bos_and_the_rest_is_dropped(make_tiny_llama) -> None:
    tokenizer = make_tiny_llama(add_bos=True).tokenizer
    texts = ["The fox.", "  ", "A dog sleeps.", ""]
    stream = [i for t in ("The fox.", "A dog sleeps.") for i in tokenizer(t)["input_ids"]]
    assert stream.count(tokenizer.bos_token_id) == 2  # and none for the blank rows
    blocks = make_blocks(texts, tokenizer, 5)
    assert blocks.tolist() == [stream[i : i + 5] for i in range(0, len(stream) - 4, 5)]
    assert len(stream) % 5 != 0


def test_no_bos_where_the_tokenizer_adds_none(make_tiny_llama) -> None:
    tokenizer = make_tiny_llama(add_bos=False).tokenizer
    blocks = make_blocks(TEXTS, tokenizer, 8)
    assert tokenizer.bos_token_id not in blocks
    assert tokenizer.decode(blocks.ravel()).startswith(TEXTS[0])


def test_too_short_corpus_is_an_error(tiny_llama) -> None:
    with pytest.raises(DataError, match=r"too short: 1 texts with \d+ tokens give 0 blocks of 64"):
        make_blocks(["The fox."], tiny_llama.tokenizer, 64)
    with pytest.raises(DataError, match="too short: 0 texts"):
        make_blocks(["", " \n"], tiny_llama.tokenizer, 4)


# --------------------------------------------------------------------------- masks
@given(
    ids=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    probability=st.floats(0, 1),
    seed=st.integers(0, 1000),
    masking=st.sampled_from(["bert", "all"]),
)
def test_masks_change_only_labelled_positions_and_never_protected_ones(
    ids: list[int], probability: float, seed: int, masking: str
) -> None:
    block, protected = np.array(ids), np.array([0, 1, 9])
    generator = np.random.default_rng(seed)
    masked, labels = mask_block(block, protected, generator, 9, 31, probability, masking)
    labelled = labels != IGNORED
    assert (labels[labelled] == block[labelled]).all()
    assert (masked == block)[1:][~labelled[1:]].all()  # the first may change without a label
    assert not labelled[0]
    spared = np.isin(block, protected)
    assert (masked == block)[spared].all() and not labelled[spared].any()
    if masking == "all":
        assert (masked[labelled] == 9).all()


@pytest.mark.parametrize(("masking", "shares"), [("bert", (0.8, 0.1, 0.1)), ("all", (1, 0, 0))])
def test_shares_of_mask_random_and_kept(masking: str, shares: tuple) -> None:
    block = np.full(200_000, 50)
    generator = np.random.default_rng(0)
    masked, labels = mask_block(block, np.array([0]), generator, 7, 1000, 0.2, masking)
    chosen = labels != IGNORED
    assert chosen.mean() == pytest.approx(0.2, abs=0.005)
    got = masked[chosen]
    mask, kept = (got == 7).mean(), (got == 50).mean()
    assert (mask, 1 - mask - kept, kept) == pytest.approx(shares, abs=0.01)
    if masking == "bert":
        random = got[(got != 7) & (got != 50)]
        assert len(np.unique(random)) > 900  # over the whole vocabulary


def test_masks_depend_on_seed_and_position_not_on_the_batch(tiny_llama) -> None:
    masker = Masker(tiny_llama.tokenizer, MNTP_SETTINGS)
    blocks = make_blocks(TEXTS, tiny_llama.tokenizer, 16)
    both = masker([(10, blocks[0]), (11, blocks[1])])
    alone = masker([(11, blocks[1])])
    assert torch.equal(both["input_ids"][1:], alone["input_ids"])
    assert torch.equal(both["labels"][1:], alone["labels"])
    later = masker([(12, blocks[1])])
    assert not torch.equal(later["labels"], alone["labels"])
    other = Masker(tiny_llama.tokenizer, replace(MNTP_SETTINGS, seed=1))([(11, blocks[1])])
    assert not torch.equal(other["labels"], alone["labels"])


def test_bos_and_a_mask_in_the_text_are_never_masked(tiny_llama) -> None:
    tokenizer = tiny_llama.tokenizer
    masker = Masker(tokenizer, replace(MNTP_SETTINGS, mask_probability=1.0, masking="all"))
    ids = np.array(tokenizer("a_b")["input_ids"])
    labels = masker([(0, ids)])["labels"][0]
    assert ids[0] == tokenizer.bos_token_id and ids[2] == mask_token_id(tokenizer)
    assert labels.tolist() == [IGNORED, ids[1], IGNORED, ids[3]]


def test_tokenizer_without_the_mask_token_is_an_error() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "fox": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(SettingError, match="no token '_' to mask with"):
        Masker(tokenizer, MNTP_SETTINGS)
    assert mask_token_id(tokenizer, "fox") == 1


# --------------------------------------------------------------------------- loss
def test_loss_is_that_of_the_plain_way(tiny_llama) -> None:
    model, tokenizer = tiny_llama
    set_attention(model, True)
    inputs = Masker(tokenizer, MNTP_SETTINGS)(
        list(enumerate(make_blocks(TEXTS, tokenizer, 32)[:6]))
    )
    ids, labels = inputs["input_ids"], inputs["labels"]
    with torch.no_grad():
        plain = model(input_ids=ids, labels=labels).loss  # logits everywhere, then shifted
        stage = MNTPModel(add_lora(model.base_model, LORA, 0), model.lm_head).eval()
        ours = stage(ids, labels) / (labels != IGNORED).sum()
    assert float(plain) > 1
    assert float(ours) == pytest.approx(float(plain), abs=1e-5)


def test_logits_are_computed_at_the_labels_alone(tiny_llama) -> None:
    model, tokenizer = tiny_llama
    inputs = Masker(tokenizer, MNTP_SETTINGS)(
        list(enumerate(make_blocks(TEXTS, tokenizer, 32)[:6]))
    )
    rows = []
    model.lm_head.register_forward_hook(lambda head, args, out: rows.append(out.shape))
    stage = MNTPModel(add_lora(model.base_model, LORA, 0), model.lm_head)
    stage(inputs["input_ids"], inputs["labels"])
    labels = int((inputs["labels"] != IGNORED).sum())
    assert rows == [(labels, len(tokenizer))] and 0 < labels < inputs["labels"].numel() / 2


def test_a_run_is_a_plain_training_loop(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """On the same masks: transformers' own loss, torch's AdamW, clipping, a linear schedule."""
    lora, steps = replace(LORA, dropout=0.0), 5
    out = run(
        "mntp", tiny_llama_dir, write_texts(tmp_path), tmp_path / "out", lora=lora, steps=steps
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    model, tokenizer = load_backbone(tiny_llama_dir, dtype="float32", device="cpu", head=True)
    set_attention(model, True)
    blocks = make_blocks(TEXTS, tokenizer, 16)
    stream = Stream(blocks, 4 * steps, MNTP_SETTINGS.seed)
    body = add_lora(model.base_model, lora, MNTP_SETTINGS.seed)
    trained = {n: p for n, p in body.named_parameters() if p.requires_grad}
    adam = torch.optim.AdamW(trained.values(), weight_decay=0.0)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / 50)
        batch = Masker(tokenizer, MNTP_SETTINGS)([stream[4 * step + i] for i in range(4)])
        loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        adam.step()
        assert rows[step]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
        assert rows[step]["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    saved = load_file(out / "run" / f"checkpoint-{steps}" / "lora.safetensors")
    assert saved.keys() == {f"backbone.{name}" for name in trained}
    for name, parameter in trained.items():
        gap = (saved[f"backbone.{name}"] - parameter.detach()).abs().max()
        assert gap < 1e-3, name  # a weight moves by up to 5e-2


@pytest.mark.slow
def test_golden_loss_of_the_published_code() -> None:
    model, _ = load_backbone("smollm2-135m", dtype="float32", device="cpu", head=True)
    set_attention(model, True)
    golden = np.load(GOLDEN)
    ids, labels = (torch.from_numpy(golden[f"mntp_{k}"]).long() for k in ("input_ids", "labels"))
    stage = MNTPModel(add_lora(model.base_model, MNTP().lora, 0), model.lm_head).eval()
    with torch.no_grad():
        ours = stage(ids, labels) / (labels[:, 1:] != IGNORED).sum()
    assert float(ours) == pytest.approx(float(golden["mntp_loss"]), abs=1e-5)


def test_only_lora_is_trained_and_the_head_stays(tiny_llama) -> None:
    model, tokenizer = tiny_llama
    head = model.lm_head.weight.clone()
    stage = MNTPModel(add_lora(model.base_model, LORA, 0), model.lm_head)
    inputs = Masker(tokenizer, MNTP_SETTINGS)(list(enumerate(make_blocks(TEXTS, tokenizer, 16))))
    stage(inputs["input_ids"], inputs["labels"]).backward()
    trained = {n for n, p in stage.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    assert torch.equal(head, model.lm_head.weight)


def test_micro_batches_give_the_run_of_the_whole_batch(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    text = write_texts(tmp_path)
    changes = {"lora": replace(LORA, dropout=0.0), "steps": 4}
    losses = []
    for max_tokens in (16, 64):  # micro-batches of 1 and of 4; the numbers of labels differ
        out = run(
            "mntp", tiny_llama_dir, text, tmp_path / str(max_tokens),
            {"max_tokens": max_tokens}, **changes,
        )  # fmt: skip
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([(row["loss"], row["grad_norm"]) for row in rows])
    assert np.allclose(losses[0], losses[1], rtol=1e-3)


def test_logits_that_the_head_does_not_explain_are_refused(tiny_llama) -> None:
    check_head(tiny_llama.model)
    tiny_llama.model.config.final_logit_softcapping = 1.0  # which LLaMA's own code does not read
    with pytest.raises(SettingError, match="changes its logits after the head"):
        check_head(tiny_llama.model)


# --------------------------------------------------------------------------- accuracy
def test_accuracy_is_that_of_the_plain_way(tiny_llama) -> None:
    model, tokenizer = tiny_llama
    set_attention(model, True)
    blocks = make_blocks(TEXTS, tokenizer, 16)[:9]
    got = evaluate_masked_accuracy(model, tokenizer, blocks, 0.3, seed=3, batch=4)
    settings = replace(MNTP_SETTINGS, mask_probability=0.3, masking="all", seed=3)
    inputs = Masker(tokenizer, settings)(list(enumerate(blocks)))
    with torch.no_grad():
        logits = model(inputs["input_ids"]).logits[:, :-1]
    targets = inputs["labels"][:, 1:]
    kept = targets != IGNORED
    assert got["n"] == int(kept.sum()) > 20
    expected = (logits.argmax(-1) == targets)[kept].float().mean()
    assert got["accuracy"] == pytest.approx(float(expected), abs=1e-6)
    loss = torch.nn.functional.cross_entropy(logits[kept], targets[kept])
    assert got["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_training_raises_masked_accuracy_and_the_note_says_so(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored = tmp_path / "mirror" / "wikitext-103-raw-v1" / "test.parquet"
    mirrored.parent.mkdir(parents=True)
    pd.DataFrame({"text": TEXTS}).to_parquet(mirrored)
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    text = write_texts(tmp_path)
    out = run(
        "mntp", tiny_llama_dir, text, tmp_path / "out", {"max_tokens": 512},
        steps=40, batch_size=8, learning_rate=2e-2, schedule_steps=60,
    )  # fmt: skip
    accuracy = []
    for adapted in (False, True):
        model, tokenizer = load_backbone(tiny_llama_dir, dtype="float32", device="cpu", head=True)
        set_attention(model, True)
        if adapted:
            merge_adapter(model.base_model, out)
        blocks = make_blocks(TEXTS, tokenizer, 16)
        accuracy.append(evaluate_masked_accuracy(model, tokenizer, blocks)["accuracy"])
    assert accuracy[1] > accuracy[0] + 0.1
    note = json.loads((out / "provenance.json").read_text())["masked_accuracy"]
    assert note["before"]["accuracy"] == accuracy[0] and note["before"]["n"] > 100
    assert note["after"]["accuracy"] == pytest.approx(accuracy[1], abs=0.03)  # saved in bfloat16
    assert note["data"]["id"] == "Salesforce/wikitext" and note["blocks"] == len(blocks)


@pytest.fixture
def without_underscore(make_tiny_llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A decoder whose vocabulary is words and ``<mask>``, with a test split for its accuracy."""
    mirrored = tmp_path / "mirror" / "wikitext-103-raw-v1" / "test.parquet"
    mirrored.parent.mkdir(parents=True)
    pd.DataFrame({"text": TEXTS}).to_parquet(mirrored)
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    words = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *dict.fromkeys(" ".join(TEXTS).split())]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip
    make_tiny_llama(vocab_size=len(words)).model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_accuracy_of_a_run_is_measured_with_its_own_mask(
    without_underscore: Path, tmp_path: Path
) -> None:
    arguments = ("mntp", without_underscore, write_texts(tmp_path), tmp_path / "out")
    with pytest.raises(SettingError, match="no token '_' to mask with"):
        run(*arguments, steps=1)
    out = run(*arguments, steps=1, mask_token="<mask>")
    note = json.loads((out / "provenance.json").read_text())["masked_accuracy"]
    assert note["before"]["n"] == note["after"]["n"] > 50
    stage, tokenizer = load_backbone(without_underscore, head=True, device="cpu")
    set_attention(stage, True)
    blocks = make_blocks(TEXTS, tokenizer, 16)
    assert note["before"] == evaluate_masked_accuracy(stage, tokenizer, blocks, mask_token="<mask>")
    with pytest.raises(SettingError, match="no token '_' to mask with"):
        evaluate_masked_accuracy(stage, tokenizer, blocks)


def test_an_accuracy_that_cannot_be_measured_costs_no_adapter(
    without_underscore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise SettingError("no way")

    monkeypatch.setattr("llm2vec.mntp.evaluate_masked_accuracy", fails)
    out = run(
        "mntp", without_underscore, write_texts(tmp_path), tmp_path / "out", steps=1,
        mask_token="<mask>",
    )  # fmt: skip
    note = json.loads((out / "provenance.json").read_text())
    assert note["masked_accuracy"] == {"not measured": "no way"}
    assert load_file(out / "adapter_model.safetensors")
