"""Features are the right states, computed once; the probe learns what is there and no more."""

import json
import runpy
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from llm2vec import features as features_module
from llm2vec import paths, probing, word_evaluation
from llm2vec.attention import set_attention
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import DataError, SettingError, UnknownNameError
from llm2vec.features import WordFeatures, word_features
from llm2vec.probing import (
    ProbeData,
    entity_f1,
    predict,
    probe_batches,
    probe_task,
    sentence_interval,
    train_probe,
)
from llm2vec.registry import MODELS, PROBE, VARIANTS
from llm2vec.results import hash_of, read_record
from llm2vec.words import (
    ALIGNMENTS,
    TAGS,
    Sentence,
    Tokens,
    alignment_of,
    load_corpus,
    tokenize,
)

QUICK = replace(PROBE, steps=60, seeds=(42, 43))
MakeEncoder = Callable[..., LLM2Vec]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def make_encoder(make_tiny_llama) -> MakeEncoder:
    """An encoder around a tiny random Llama whose tokenizer, like SmolLM2's, adds no BOS."""

    def make(variant: str = "bi", adapters: tuple[str, ...] = (), seed: int = 0) -> LLM2Vec:
        tiny = make_tiny_llama(add_bos=False, seed=seed)
        set_attention(tiny.model.model, VARIANTS[variant].attention == "bidirectional")
        return LLM2Vec(
            tiny.model.model, tiny.tokenizer, model=MODELS["smollm2-135m"],
            variant=VARIANTS[variant], adapters=adapters,
        )  # fmt: skip

    return make


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
    word_features(make_encoder("bi", ("0" * 64,)), tokens)
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


# --------------------------------------------------------------------------- the probe
def synthetic(
    labels: np.ndarray, states: np.ndarray, words: int = 5
) -> tuple[WordFeatures, ProbeData]:
    """Sentences of ``words`` one-token words each; the BOS rows stay zero."""
    count = len(labels) // words
    rows = np.zeros((count, words + 1, states.shape[1]), np.float32)
    rows[:, 1:] = states[: count * words].reshape(count, words, -1)
    features = WordFeatures(
        rows.reshape(-1, states.shape[1]), [Tokens([0] * (words + 1), spans(words))] * count
    )
    return features, ProbeData(features, "same", labels, 0, count)


def test_probe_reaches_everything_on_separable_data_and_chance_on_shuffled_labels() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 2000)
    states = rng.standard_normal((9, 24))[labels] + 0.1 * rng.standard_normal((2000, 24))
    _, data = synthetic(labels, states)
    probe = train_probe(data, 9)
    assert (predict([probe], data) == labels).mean() == 1.0
    shuffled = replace(data, labels=rng.permutation(labels))
    probe = train_probe(shuffled, 9)
    fresh = synthetic(labels, rng.permutation(states))[1]
    assert abs((predict([probe], fresh) == labels).mean() - 1 / 9) < 0.03


def test_probe_is_the_seeds_and_nothing_elses() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 200)
    _, data = synthetic(labels, rng.standard_normal((200, 8)))
    torch.manual_seed(5)
    first = train_probe(data, 3, QUICK, seed=1).weight
    untouched = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), untouched)  # the caller's generator goes on as if unused
    assert torch.equal(train_probe(data, 3, QUICK, seed=1).weight, first)
    assert not torch.equal(train_probe(data, 3, QUICK, seed=2).weight, first)


def test_rate_decays_linearly_to_nothing() -> None:
    rng = np.random.default_rng(2)
    _, data = synthetic(rng.integers(0, 3, 200), rng.standard_normal((200, 8)))
    weights = [
        train_probe(data, 3, replace(QUICK, steps=steps, schedule_steps=4)).weight.detach()
        for steps in (0, 1, 2, 3, 4, 9)
    ]
    moved = [(b - a).abs().max().item() for a, b in pairwise(weights)]
    # Adam's first step is the rate itself; the later ones shrink with it, to none after the end.
    assert moved[0] == pytest.approx(5e-4, rel=1e-2)
    assert moved[0] > moved[1] > moved[2] > moved[3] > 0
    assert moved[4] == 0


def test_probe_matches_a_plain_training_loop_without_dropout() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 120)
    states = 10 * rng.standard_normal((120, 6)).astype(np.float32)  # so that clipping acts
    _, data = synthetic(labels, states)
    settings = replace(PROBE, dropout=0.0, steps=30)
    torch.manual_seed(7)
    plain = torch.nn.Linear(6, 4)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=5e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 17_560)
    for chosen in probe_batches(24, 8, 30, seed=7):
        rows = (chosen[:, None] * 5 + np.arange(5)).ravel()
        loss = torch.nn.functional.cross_entropy(
            plain(torch.from_numpy(states[rows])), torch.from_numpy(labels[rows])
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    trained = train_probe(data, 4, settings, seed=7)
    torch.testing.assert_close(trained.weight, plain.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(trained.bias, plain.bias, atol=1e-6, rtol=0)


def test_batches_visit_every_sentence_once_an_epoch() -> None:
    batches = list(probe_batches(10, 4, 7, seed=0))
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4, 2, 4]
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:6])
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


# --------------------------------------------------------------------------- metrics
def ids(task: str, *tags: str) -> np.ndarray:
    return np.array([TAGS[task].index(tag) for tag in tags])


def test_entity_f1_by_hand() -> None:
    gold = ids("ner", "B-PER", "I-PER", "O", "B-LOC", "O", "B-ORG")
    predicted = ids("ner", "B-PER", "O", "O", "B-LOC", "O", "B-PER")
    # 3 gold spans, 3 predicted, 1 of them whole and right: precision = recall = F1 = 1/3
    assert entity_f1("ner", gold, predicted, np.array([0, 3, 6])) == pytest.approx(1 / 3)
    assert entity_f1("ner", gold, gold, np.array([0, 3, 6])) == 1.0
    assert entity_f1("ner", gold, ids("ner", *["O"] * 6), np.array([0, 3, 6])) == 0.0


def test_entities_end_with_their_sentence() -> None:
    gold, predicted = ids("ner", "B-PER", "B-PER"), ids("ner", "B-PER", "I-PER")
    # In one sentence the prediction is one long span; in two it is two spans, both right.
    assert entity_f1("ner", gold, predicted, np.array([0, 2])) == 0.0
    assert entity_f1("ner", gold, predicted, np.array([0, 1, 2])) == 1.0


def test_interval_resamples_sentences_not_words() -> None:
    words = 20
    whole = np.repeat(np.arange(50) % 2, words).astype(float)  # sentences all right or all wrong
    starts = np.arange(0, 50 * words + 1, words)
    low, high = sentence_interval(whole, starts)
    assert low < 0.5 < high
    # A share of 50 coins: half-width near 1.96 * sqrt(0.25 / 50); over words it would be 0.03.
    assert (high - low) / 2 == pytest.approx(0.139, abs=0.02)
    assert sentence_interval(np.ones(1000), starts) == (1.0, 1.0)
    assert sentence_interval(np.array([1.0, 0.0, 0.5]), np.array([0, 3])) == (0.5, 0.5)


def tagged(count: int, rng: np.random.Generator) -> list[Sentence]:
    result = []
    for _ in range(count):
        tags = tuple(rng.choice(["O", "O", "O", "B-PER", "B-LOC"], 5))
        result.append(Sentence(("w",) * 5, {"ner": tags}, "here"))
    return result


def test_task_is_trained_on_train_and_scored_on_test() -> None:
    rng = np.random.default_rng(4)
    corpus = {"train": tagged(60, rng), "validation": tagged(10, rng), "test": tagged(20, rng)}
    labels = np.concatenate([probing.label_ids("ner", s) for s in corpus.values()])
    shown = labels.copy()
    shown[-50:] = (labels[-50:] == 0).astype(int)  # half of test's words look like another tag
    states = np.eye(9, dtype=np.float32)[shown] * 8
    features, _ = synthetic(labels, states)
    outcome = probe_task(features, corpus, "ner", "same", replace(PROBE, seeds=(1, 2)))
    accuracy = outcome.scores["accuracy"]
    assert outcome.words == 100
    assert accuracy == {"mean": 0.5, "std": 0.0, "per_seed": [0.5, 0.5]}
    assert outcome.score == 0.5
    assert outcome.scores["validation_accuracy"]["mean"] == 1.0
    majority = outcome.scores["majority_class"]
    assert majority == {"label": "O", "accuracy": pytest.approx((labels[-100:] == 0).mean())}
    assert outcome.interval[0] <= outcome.score <= outcome.interval[1]
    f1 = outcome.scores["entity_f1"]["mean"]
    assert 0 < f1 < 1


def test_pos_has_no_entities() -> None:
    rng = np.random.default_rng(5)
    corpus = {
        split: [Sentence(("w",) * 5, {"pos": ("NN",) * 5}, "here")] * 4
        for split in ("train", "test")
    }
    features, _ = synthetic(np.zeros(40, int), rng.standard_normal((40, 4)).astype(np.float32))
    outcome = probe_task(features, corpus, "pos", "same", QUICK)
    assert not {"entity_f1", "validation_accuracy"} & outcome.scores.keys()


# --------------------------------------------------------------------------- records
@pytest.fixture
def quick(make_encoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Short probes, a tiny backbone in place of SmolLM2; lists the loads."""
    loads: list[str] = []

    def load(_model: str, variant: str, **_: object) -> LLM2Vec:
        loads.append(variant)
        return make_encoder(variant)

    monkeypatch.setattr("llm2vec.encoder.load_encoder", load)
    monkeypatch.setattr(word_evaluation, "PROBE", QUICK)
    return loads


def test_both_alignments_are_recorded_and_kept(quick, tmp_path: Path) -> None:
    run = word_evaluation.plan("smollm2-135m", "uni", task="ner", data="mini")
    written = word_evaluation.execute(run, tmp_path)
    folder = tmp_path / "raw" / "word_probing" / "smollm2-135m" / "uni" / "none"
    assert written == [folder / "mini-ner.json", folder / "mini-ner@previous.json"]
    own, other = (read_record(path) for path in written)
    assert own.hyperparameters["alignment"] == "same"
    assert other.hyperparameters["alignment"] == "previous" and other.setting == "previous"
    assert own.dataset["status"] == "demonstration"
    assert own.n == sum(len(s.words) for s in load_corpus("mini")[0]["test"])
    assert own.seeds == (42, 43) and len(own.scores["accuracy"]["per_seed"]) == 2
    assert own.score == pytest.approx(np.mean(own.scores["accuracy"]["per_seed"]))
    assert own.interval[0] <= own.score <= own.interval[1]
    assert own.cost["tokens"] > own.n and own.cost["seconds"] > own.cost["probe_seconds"]
    before = [path.read_bytes() for path in written]
    word_evaluation.execute(run, tmp_path)
    assert [path.read_bytes() for path in written] == before
    assert quick == ["uni"]  # nothing to do: not even loaded


def test_the_plain_record_of_an_mntp_variant_reads_the_previous_position() -> None:
    run = word_evaluation.plan("smollm2-135m", "bi-mntp")
    assert run.key("ner", "previous").setting is None
    assert run.key("ner", "same").setting == "same"
    assert word_evaluation.plan("smollm2-135m", "bi").key("ner", "same").setting is None


def test_whatever_departs_from_the_setting_is_marked() -> None:
    trial = word_evaluation.plan("smollm2-135m", "uni", max_sentences=200, dtype="bfloat16")
    assert trial.key("pos", "same").setting == "bfloat16-first-200"
    assert trial.key("pos", "previous").setting == "previous-bfloat16-first-200"
    full = word_evaluation.plan("smollm2-135m", "uni")
    assert full.hyperparameters("same") != trial.hyperparameters("same")
    assert full.hyperparameters("same") != full.hyperparameters("previous")
    assert word_evaluation.plan("smollm2-135m", "uni", data="mini").key("pos", "same").task == (
        "mini-pos"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "smollm"}, UnknownNameError, "unknown model 'smollm'"),
        ({"variant": "echo"}, SettingError, "no variant 'echo' here. Valid: uni, bi,"),
        ({"model": "minilm-l6"}, SettingError, "no variant 'uni' here. Valid: encoder"),
        ({"task": "srl"}, UnknownNameError, "unknown word task 'srl'"),
        ({"data": "conll"}, UnknownNameError, "Did you mean 'conll2003'"),
        ({"max_sentences": 0}, SettingError, "must be 1 or more"),
        ({"adapters": "theirs"}, UnknownNameError, "Valid: own, published"),
    ],
)
def test_wrong_names_are_refused_before_anything_loads(arguments, error, message) -> None:
    chosen = {"model": "smollm2-135m", "variant": "uni"} | arguments
    with pytest.raises(error, match=message):
        word_evaluation.plan(**chosen)


@pytest.mark.parametrize(
    ("model", "variant", "folders"),
    [
        ("mistral-7b", "bi-mntp", ["mntp-words"]),  # paper D.1.3: an adapter of its own
        ("mistral-7b", "bi-mntp-simcse", ["mntp", "mntp-simcse"]),
        ("llama-2-7b", "bi-mntp", ["mntp"]),
        ("mistral-7b", "bi", []),
    ],
)
def test_mistral_has_an_mntp_adapter_for_words(
    model, variant, folders, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path))
    for stage in ("mntp", "mntp-words", "mntp-simcse"):
        (tmp_path / model / stage).mkdir(parents=True)
        (tmp_path / model / stage / "adapter_model.safetensors").write_bytes(b"weights")
    run = word_evaluation.plan(model, variant)
    assert [f.name for f in word_evaluation.word_adapters(run)] == folders


def test_the_script_hands_its_options_on(repo_root, tmp_path, monkeypatch) -> None:
    ran = []
    monkeypatch.setattr(word_evaluation, "execute", lambda *arguments: ran.append(arguments))
    script = runpy.run_path(str(repo_root / "experiments" / "03_word_probing.py"))
    options = "--model smollm2-135m --variant bi-mntp --task ner --data mini --max-sentences 7"
    arguments = [*options.split(), "--results", str(tmp_path), "--device", "cpu"]
    app = typer.Typer()
    app.command()(script["main"])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    ((run, root, device),) = ran
    assert (run.variant.name, run.tasks, run.data, run.max_sentences) == (
        "bi-mntp", ("ner",), "mini", 7,
    )  # fmt: skip
    assert (root, device) == (tmp_path, "cpu")


def test_a_sentence_longer_than_the_context_is_named(make_encoder) -> None:
    encoder = make_encoder()
    encoder.backbone.config.max_position_embeddings = 40
    corpus = {"train": [Sentence(("naïve",) * 9, {}, "train.txt:31")]}
    with pytest.raises(DataError, match=r"train\.txt:31: a sentence of \d+ tokens.* holds 40"):
        word_evaluation.corpus_features(encoder, corpus)


@pytest.mark.slow
def test_the_mini_corpus_tells_a_language_model_from_noise(monkeypatch, request) -> None:
    monkeypatch.undo()  # the real cache
    if not list((paths.cache_dir() / "models").glob("smollm2-135m-*")):
        pytest.skip("the embedded model is not in the cache: run any experiment with it once")
    from llm2vec.encoder import load_encoder

    corpus, _ = load_corpus("mini")
    features = word_evaluation.corpus_features(load_encoder("smollm2-135m", "uni"), corpus)
    noise = np.random.default_rng(0).standard_normal(features.states.shape).astype(np.float32)
    tokens = tokenize(
        load_encoder("smollm2-135m", "uni").tokenizer, [s for v in corpus.values() for s in v], 512
    )
    settings = replace(PROBE, seeds=(42,))
    for task, at_least in (("chunking", 0.8), ("ner", 0.8), ("pos", 0.8)):
        learned = probe_task(features, corpus, task, "same", settings)
        random = probe_task(WordFeatures(noise, tokens), corpus, task, "same", settings)
        assert learned.score > at_least, task
        if task == "ner":  # most words are no names, which noise finds out too: count names
            learned_names, random_names = (o.scores["entity_f1"]["mean"] for o in (learned, random))
            assert random_names < learned_names - 0.3
        else:
            assert random.score < learned.score - 0.4, task
