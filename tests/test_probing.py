"""Features are the right states, computed once; the probe learns what is there and no more."""

import runpy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from llm2vec import paths, probing, word_evaluation
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import DataError, SettingError, UnknownNameError
from llm2vec.features import WordFeatures
from llm2vec.probing import (
    ProbeData,
    entity_f1,
    predict,
    probe_batches,
    probe_task,
    sentence_interval,
    train_probe,
)
from llm2vec.registry import PROBE
from llm2vec.results import read_record
from llm2vec.words import (
    TAGS,
    Sentence,
    Tokens,
    load_corpus,
    tokenize,
)

QUICK = replace(PROBE, steps=60, seeds=(42, 43))


@pytest.fixture(autouse=True)
def cache(fresh_cache: Path) -> Path:
    return fresh_cache / "features"


def sentence(*text: str) -> Sentence:
    return Sentence(text, {}, "here")


def spans(words: int) -> dict:
    """Spans of one-token words behind a BOS."""
    return {
        "same": [(i + 1, i + 2) for i in range(words)],
        "previous": [(i, i + 1) for i in range(words)],
    }


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


def test_whose_adapters_is_said_where_there_are_any() -> None:
    with_some, without = (
        word_evaluation.plan("mistral-7b", variant, adapters="published")
        for variant in ("bi-mntp", "uni")
    )
    assert with_some.key("ner", "previous").setting == "published"
    own = word_evaluation.plan("mistral-7b", "uni")
    assert without.key("ner", "same") == own.key("ner", "same")


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
