"""Word features: means of the right states, and the cache that keeps them."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm2vec import features as features_module
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import DataError
from llm2vec.features import WordFeatures, word_features
from llm2vec.registry import VARIANTS
from llm2vec.results import hash_of
from llm2vec.words import (
    ALIGNMENTS,
    Sentence,
    Tokens,
    alignment_of,
    tokenize,
)


@pytest.fixture(autouse=True)
def cache(fresh_cache: Path) -> Path:
    return fresh_cache / "features"


def sentence(*text: str) -> Sentence:
    return Sentence(text, {}, "here")


TEXTS = [
    sentence("The", "quick", "brown", "fox", "jumps", "."),
    sentence("Zürich"),
    *(sentence(*["word", "naïve", "东京"] * n, str(n)) for n in range(1, 12)),
]


def states_of(encoder: LLM2Vec, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return encoder.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]


# --------------------------------------------------------------------------- features
def test_which_alignment_follows_from_the_variant() -> None:
    previous = {name for name, v in VARIANTS.items() if alignment_of(v) == "previous"}
    assert previous == {"bi-mntp", "bi-mntp-simcse"}


@pytest.mark.parametrize("variant", ["uni", "bi"])
def test_features_are_means_of_the_states_at_the_words_positions(make_encoder, variant) -> None:
    encoder = make_encoder(variant)
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)
    features = word_features(encoder, tokens, stored="float32")
    for index in (0, 1, 7):
        states = states_of(encoder, tokens[index].ids)
        own = [states[a:b].mean(0) for a, b in tokens[index].spans["same"]]
        before = [states[a - 1 : b - 1].mean(0) for a, b in tokens[index].spans["same"]]
        torch.testing.assert_close(
            features.gather([index], "same"), torch.stack(own), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            features.gather([index], "previous"), torch.stack(before), atol=1e-4, rtol=0
        )


def test_previous_positions_of_a_causal_model_do_not_know_the_word(make_encoder) -> None:
    encoder = make_encoder("uni")
    texts = [sentence("The", "quick", "a"), sentence("The", "quick", "b")]  # one token at the end
    features = word_features(encoder, tokenize(encoder.tokenizer, texts, 64), stored="float32")
    a, b = (features.gather([i], "previous")[-1] for i in (0, 1))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert (features.gather([0], "same")[-1] - features.gather([1], "same")[-1]).abs().max() > 0.1


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_batch_size_does_not_move_features(make_encoder, alignment, monkeypatch, tmp_path) -> None:
    encoder = make_encoder("bi")
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)
    everything = range(len(TEXTS))
    found = []
    for batch, max_tokens in (("one", 1), ("all", 100_000)):
        monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / batch))
        encoder.max_tokens = max_tokens
        before = encoder.counter.passes
        features = word_features(encoder, tokens, stored="float32")
        found.append(features.gather(everything, alignment))
        assert encoder.counter.passes - before == (len(TEXTS) if batch == "one" else 1)
    assert found[0].shape == (sum(len(t.words) for t in TEXTS), 32)
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_stored_half_precision_rounds_by_its_last_bit_only(make_encoder) -> None:
    encoder = make_encoder("bi")
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)
    exact = word_features(encoder, tokens, stored="float32").gather(range(5), "same")
    stored = word_features(encoder, tokens).gather(range(5), "same")
    assert stored.dtype == torch.float32
    assert 0 < (exact - stored).abs().max() <= exact.abs().max() * 2**-10


def test_gather_keeps_the_order_asked_for() -> None:
    tokens = [Tokens([0] * n, spans(n - 1)) for n in (3, 2, 4)]
    features = WordFeatures(np.arange(9, dtype=np.float32)[:, None], tokens)
    assert features.gather([2, 0], "same")[:, 0].tolist() == [6, 7, 8, 1, 2]
    assert features.gather([2, 0], "previous")[:, 0].tolist() == [5, 6, 7, 0, 1]
    assert features.word_indices([2, 0]).tolist() == [3, 4, 5, 0, 1]
    with pytest.raises(ValueError, match="8 states for 9 tokens"):
        WordFeatures(np.zeros((8, 1)), tokens)


def spans(words: int) -> dict:
    """Spans of one-token words behind a BOS."""
    return {
        "same": [(i + 1, i + 2) for i in range(words)],
        "previous": [(i, i + 1) for i in range(words)],
    }


# --------------------------------------------------------------------------- the cache
def test_backbone_runs_once_and_cost_is_kept(make_encoder, cache: Path) -> None:
    encoder = make_encoder()
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)
    first = word_features(encoder, tokens)
    seen = encoder.counter.tokens
    assert seen == sum(len(t.ids) for t in tokens) == first.cost["tokens"]
    again = word_features(encoder, tokens)
    assert encoder.counter.tokens == seen
    assert again.cost == first.cost
    assert isinstance(again.states, np.memmap)
    assert torch.equal(again.gather([0, 3], "same"), first.gather([0, 3], "same"))


def test_another_adapter_variant_or_text_is_another_entry(make_encoder, cache: Path) -> None:
    tokens = tokenize(make_encoder().tokenizer, TEXTS, 512)
    word_features(make_encoder("bi"), tokens)
    word_features(make_encoder("bi", adapters=("0" * 64,)), tokens)
    word_features(make_encoder("uni"), tokens)
    word_features(make_encoder("bi"), tokens[:-1])
    word_features(make_encoder("bi"), tokens)
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 4


def test_whatever_decides_the_states_is_in_the_key(make_encoder) -> None:
    encoder = make_encoder()
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)

    def key(**changes: object) -> str:
        other = make_encoder()
        for name, value in changes.items():
            setattr(other, name, value)
        return hash_of(features_module.features_key(other, tokens, "float16"))

    same = key()
    assert same == key()
    spec = encoder.model
    others = [
        key(model=replace(spec, name="other")), key(model=replace(spec, revision="f" * 40)),
        key(variant=VARIANTS["uni"]), key(adapters=("0" * 64,)),
        key(backbone=encoder.backbone.to(torch.bfloat16)),
        hash_of(features_module.features_key(make_encoder(), tokens, "float32")),
        hash_of(features_module.features_key(make_encoder(), tokens[:-1], "float16")),
        # Same tokens, cut into other sentences.
        hash_of(features_module.features_key(
            make_encoder(), [Tokens([i for t in tokens for i in t.ids], {})], "float16"
        )),
    ]  # fmt: skip
    assert len({same, *others}) == 1 + len(others)


def test_folders_of_one_name_have_entries_of_their_own(make_encoder, tmp_path: Path) -> None:
    """Different weights, nothing else; an encoder's place is no part of what it is."""
    texts = TEXTS[:3]
    folders = {seed: tmp_path / str(seed) / "encoder" for seed in (1, 2)}
    loaded = {}
    for seed, folder in folders.items():
        make_encoder("bi", seed=seed).save(folder)
        loaded[seed] = LLM2Vec.from_pretrained(folder, device="cpu")
    tokens = tokenize(loaded[1].tokenizer, texts, 512)
    one, two = (word_features(loaded[seed], tokens).gather([0], "same") for seed in (1, 2))
    assert (one - two).abs().max() > 0.1
    shutil.copytree(folders[1], tmp_path / "moved" / "encoder")
    moved = LLM2Vec.from_pretrained(tmp_path / "moved" / "encoder", device="cpu")
    assert torch.equal(word_features(moved, tokens).gather([0], "same"), one)
    assert moved.counter.passes == 0, "read from the cache"


def test_the_key_names_weights_or_place_outside_the_registry_alone(make_encoder) -> None:
    encoder = make_encoder("bi")
    tokens = tokenize(encoder.tokenizer, TEXTS[:1], 512)
    assert set(features_module.features_key(encoder, tokens, "float16")) == {
        "format", "model", "revision", "variant", "adapters", "dtype", "attention", "tokens",
        "stored", "versions",
    }  # fmt: skip
    keys = []
    for hub_id in ("one/model", "other/model"):
        encoder.model = replace(encoder.model, name="model", hub_id=hub_id)
        keys.append(features_module.features_key(encoder, tokens, "float16"))
    assert keys[0] != keys[1]


def damage_states(folder: Path) -> None:
    data = bytearray((folder / "states.bin").read_bytes())
    data[7] ^= 1
    (folder / "states.bin").write_bytes(data)


def damage_size(folder: Path) -> None:
    (folder / "states.bin").write_bytes((folder / "states.bin").read_bytes()[:-2])


def damage_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"shape": [', encoding="utf-8")


def damage_shape(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    (folder / "meta.json").write_text(json.dumps(meta | {"shape": 3}), encoding="utf-8")


def lose_states(folder: Path) -> None:
    (folder / "states.bin").unlink()


@pytest.mark.parametrize(
    "damage", [damage_states, damage_size, damage_meta, damage_shape, lose_states]
)
def test_damaged_entries_are_computed_again(make_encoder, cache: Path, damage) -> None:
    encoder = make_encoder()
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)
    before = word_features(encoder, tokens).gather([0], "same")
    seen = encoder.counter.tokens
    (folder,) = (p for p in cache.iterdir() if p.is_dir())
    damage(folder)
    assert torch.equal(word_features(encoder, tokens).gather([0], "same"), before)
    assert encoder.counter.tokens == 2 * seen


def test_an_interrupted_pass_leaves_nothing_behind(make_encoder, cache: Path, monkeypatch) -> None:
    encoder = make_encoder()
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)

    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        word_features(encoder, tokens, progress=stop)
    assert [p for p in cache.iterdir() if p.is_dir()] == []
    assert len(word_features(encoder, tokens).gather([0], "same")) == 6  # the lock is free


def test_concurrent_jobs_compute_once(make_encoder) -> None:
    encoder = make_encoder()
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)
    found: list[torch.Tensor] = []

    def job() -> None:
        found.append(word_features(encoder, tokens).gather(range(4), "same"))

    jobs = [threading.Thread(target=job) for _ in range(4)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert encoder.counter.tokens == sum(len(t.ids) for t in tokens)
    assert len(found) == 4 and all(torch.equal(found[0], other) for other in found)


def test_a_cache_that_cannot_be_written_is_named(make_encoder, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / "file"))
    encoder = make_encoder()
    with pytest.raises(DataError, match=r"file.features.*LLM2VEC_CACHE"):
        word_features(encoder, tokenize(encoder.tokenizer, TEXTS, 512))


def test_a_full_disk_is_named_and_leaves_nothing(make_encoder, cache: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features_module, "compute_states", full)
    encoder = make_encoder()
    with pytest.raises(DataError, match="No space left on device"):
        word_features(encoder, tokenize(encoder.tokenizer, TEXTS, 512))
    assert [p for p in cache.iterdir() if p.is_dir()] == []


def test_states_too_large_for_half_precision_are_refused(make_encoder) -> None:
    encoder = make_encoder()
    encoder.backbone.norm.weight.data.fill_(1e6)
    tokens = tokenize(encoder.tokenizer, TEXTS, 512)
    with pytest.raises(DataError, match="not finite as float16"):
        word_features(encoder, tokens)
    assert word_features(encoder, tokens, stored="float32").states.max() > 65504
