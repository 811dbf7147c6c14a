"""The offline suite: pinned data, no leak into training, neither trivial nor hopeless."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from sklearn.feature_extraction.text import HashingVectorizer

from llm2vec import assets, offline_corpora, offline_suite, paths, registry
from llm2vec.errors import DataError, UnknownNameError
from llm2vec.intervals import Interval, bootstrap_interval, read_predictions
from llm2vec.offline_corpora import Corpora
from llm2vec.prompts import build_prompt, build_prompts, format_instruction

NAMES = registry.get_suite("offline")

# Expected score of embeddings that know nothing: 1/k for classification, 0 for correlations; for
# rankings the mean over the rank of a relevant document; for small cluster sets and for pairs,
# whose chance level is above 0 and above the share of positives, the mean over random vectors.
CHANCE = {
    "OfflineHeadingRetrieval": 0.06,
    "OfflineContinuationRetrieval": 0.06,
    "OfflineNewsRetrieval": 0.09,
    "OfflineCaptionReranking": 0.34,
    "OfflineSubjectReranking": 0.29,
    "OfflineArticleClustering": 0.22,
    "OfflineSectionClustering": 0.23,
    "OfflineSubjectClustering": 0.10,
    "OfflineParagraphPairs": 0.24,
    "OfflinePolarityClassification": 0.5,
    "OfflineNewsgroupClassification": 0.5,
    "OfflineChapterClassification": 0.2,
    "OfflineLeeSTS": 0.0,
    "OfflineWordSimSTS": 0.0,
    "OfflineSimLexSTS": 0.0,
}


# --------------------------------------------------------------------------- encoders, fixtures
class _Encoder(AbsEncoder):
    """Embeds texts one by one with a function; instructions are ignored."""

    def __init__(self, name: str, embed: Callable[[list[str]], np.ndarray]) -> None:
        self.embed = embed
        self.known: dict[str, np.ndarray] = {}
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"test/{name}",
                "revision": "0",
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": ["text"],
            }
        )

    def encode(self, inputs, **kwargs: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        if new := [text for text in dict.fromkeys(texts) if text not in self.known]:
            self.known |= dict(zip(new, self.embed(new), strict=True))
        return np.stack([self.known[text] for text in texts])


def _bag_of_words(texts: list[str]) -> np.ndarray:
    words = HashingVectorizer(n_features=4096, alternate_sign=False, dtype=np.float32)
    return words.transform(texts).toarray()


def _is_cached(name: str) -> bool:
    asset, cache = assets.ASSETS[name], paths.cache_dir()
    wheel = asset.package.split("==")[0].replace("-", "_")
    extracted = cache / "assets" / asset.sha256[:16] / asset.filename
    return extracted.exists() or any((cache / "wheels").glob(f"{wheel}-*.whl"))


def _need(*names: str) -> None:
    if missing := [name for name in names if not _is_cached(name)]:
        pytest.skip(f"not in the cache and tests use no network: {', '.join(missing)}")


@pytest.fixture(scope="module")
def corpora() -> Corpora:
    _need(*offline_corpora.ASSET_NAMES)
    return offline_corpora.load_corpora()


@pytest.fixture(scope="module")
def data(corpora: Corpora) -> dict[str, offline_suite.Data]:
    return {name: offline_suite.build_data(name, corpora) for name in NAMES}


def _score(encoder: _Encoder, task: Any, folder: Path | None = None) -> float:
    result = mteb.evaluate(
        encoder, task, cache=None, co2_tracker=False, show_progress_bar=False,
        prediction_folder=folder,
    )  # fmt: skip
    return float(result.task_results[0].get_score())


def _evaluate(encoder: _Encoder, task: Any, folder: Path) -> tuple[float, Interval]:
    task.load_data()
    score = _score(encoder, task, folder)
    return score, bootstrap_interval(task, read_predictions(task, folder), resamples=200)


@pytest.fixture(scope="module")
def bag(corpora: Corpora, tmp_path_factory) -> dict[str, tuple[float, Interval]]:
    encoder, folder = _Encoder("bag", _bag_of_words), tmp_path_factory.mktemp("bag")
    tasks = offline_suite.build_suite()
    return {name: _evaluate(encoder, task, folder) for name, task in tasks.items()}


@pytest.fixture(scope="module")
def minilm(corpora: Corpora) -> _Encoder:
    _need("minilm-l6-weights")
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = assets.model_folder("minilm-l6")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)

    @torch.inference_mode()
    def embed(texts: list[str]) -> np.ndarray:
        found = torch.empty(len(texts), model.config.hidden_size)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            tokens = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=256,
                return_tensors="pt",
            )  # fmt: skip
            mask = tokens["attention_mask"][..., None]
            states = model(**tokens).last_hidden_state
            found[rows] = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(found, dim=-1).numpy()

    return _Encoder("minilm", embed)


# --------------------------------------------------------------------------- what the suite is
def test_the_suite_has_the_proportions_of_the_papers_subset():
    def types(suite: str) -> Counter:
        return Counter(registry.get_task(name).type for name in registry.get_suite(suite))

    assert types("offline") == types("subset")
    assert set(NAMES) == set(offline_suite._SOURCES) == set(CHANCE)
    assert all(name.startswith("Offline") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_metadata_follows_the_registry(name: str):
    task, expected = offline_suite.build_task(name), registry.get_task(name)
    metadata = task.metadata
    assert (metadata.type, metadata.main_score) == (expected.type, expected.metric)
    assert metadata.dataset["path"] == expected.dataset
    assert not task.data_loaded
    if expected.symmetric:
        assert metadata.prompt == expected.instruction
    else:
        assert metadata.prompt == {"query": expected.instruction}
    assert expected.instruction[-1].isalpha()
    assert metadata.main_score in {
        registry.get_task(n).metric
        for n in registry.get_suite("subset")
        if registry.get_task(n).type == metadata.type
    }


def test_an_unknown_task_lists_the_valid_ones():
    with pytest.raises(UnknownNameError, match="OfflineLeeSTS"):
        offline_suite.build_data("OfflineLeeST")
    with pytest.raises(UnknownNameError, match="OfflineLeeSTS"):
        offline_suite.build_task("STSBenchmark")


# --------------------------------------------------------------------------- the data
@pytest.mark.parametrize("name", NAMES)
def test_data_has_the_pinned_revision(data, name: str):
    task = offline_suite.build_task(name)
    assert offline_suite.data_revision(data[name]) == task.metadata.dataset["revision"]


def test_a_second_build_from_the_files_is_the_same(data):
    offline_corpora._load.cache_clear()
    again = offline_corpora.load_corpora()
    assert {name: offline_suite.build_data(name, again) for name in NAMES} == data


def test_the_revision_feels_every_change(data):
    changed = json.loads(json.dumps(data["OfflineLeeSTS"]))
    assert offline_suite.data_revision(changed) == offline_suite.data_revision(
        data["OfflineLeeSTS"]
    )
    changed["score"][7] += 0.01
    assert offline_suite.data_revision(changed) != offline_suite.data_revision(
        data["OfflineLeeSTS"]
    )


def test_other_data_than_the_pinned_is_refused(corpora, monkeypatch):
    other = {"sentence1": ["a"], "sentence2": ["b"], "score": [1.0]}
    monkeypatch.setattr(offline_suite, "build_data", lambda name: other)
    with pytest.raises(DataError, match=r"OfflineLeeSTS has revision \w+, expected"):
        offline_suite.build_task("OfflineLeeSTS").load_data()


def _texts(data: offline_suite.Data) -> Iterator[str]:
    if "corpus" in data:
        yield from data["corpus"].values()
        yield from data["queries"].values()
    elif "train" in data:
        yield from data["train"]["text"]
        yield from data["test"]["text"]
    elif "sentences" in data:
        for texts in data["sentences"]:
            yield from texts
    else:
        yield from data["sentence1"]
        yield from data["sentence2"]


def test_no_text_of_the_suite_is_in_the_training_part(corpora: Corpora, data):
    training = offline_corpora.training_paragraphs(corpora)
    assert len(training) > 2000 and min(map(len, training)) >= 60
    everything = "\n".join(training)
    leaked = [
        (name, text)
        for name in NAMES
        for text in set(_texts(data[name]))
        if len(text.split()) >= 5 and text in everything
    ]
    assert leaked == []


def test_articles_are_split_once_and_entirely(corpora: Corpora):
    suite = {a.title for a in corpora.part("suite")}
    train = {a.title for a in corpora.part("train")}
    assert not suite & train
    assert suite | train == {a.title for a in corpora.articles}
    assert (len(suite), len(train)) == (43, 63)


def test_train_and_test_texts_of_a_classification_task_differ(data):
    for name, task in data.items():
        if "train" in task:
            assert not set(task["train"]["text"]) & set(task["test"]["text"]), name
            assert set(task["train"]["label"]) == set(task["test"]["label"]), name


def test_every_query_has_a_relevant_document_and_a_wrong_candidate(data):
    for name, task in data.items():
        if "corpus" not in task:
            continue
        for query, text in task["queries"].items():
            relevant = set(task["relevant"][query])
            assert relevant and relevant <= set(task["corpus"]), (name, text)
            if task["candidates"]:
                assert relevant < set(task["candidates"][query]), (name, text)
        assert len(set(task["corpus"].values())) == len(task["corpus"]), name


def test_labels_are_the_sources_own(corpora: Corpora, data):
    task = data["OfflineWordSimSTS"]
    rows = zip(task["sentence1"], task["sentence2"], task["score"], strict=True)
    assert Counter(rows) == Counter(corpora.wordsim)

    paragraphs = {a.title: " ".join(a.paragraphs) for a in corpora.part("suite")}
    task = data["OfflineArticleClustering"]
    for texts, titles in zip(task["sentences"], task["labels"], strict=True):
        assert len(set(titles)) == 3
        assert all(text in paragraphs[title] for text, title in zip(texts, titles, strict=True))


def test_the_suite_is_small_enough_for_two_minutes_on_two_cores(data):
    """About 46,000 tokens of SmolLM2 with instructions, which is 1.5 tokens a word."""
    read = set()
    for name in NAMES:
        task = registry.get_task(name)
        for text in _texts(data[name]):
            is_document = not task.symmetric and text in data[name]["corpus"].values()
            read.add(text if is_document else f"{task.instruction}: {text}")
    assert 25_000 < sum(len(text.split()) for text in read) < 34_000


# --------------------------------------------------------------------------- neither extreme
@pytest.mark.parametrize("name", NAMES)
def test_a_bag_of_words_does_not_solve_it(bag, name: str):
    score, interval = bag[name]
    assert np.isnan(score) or interval.high < 0.75  # nan: no two words of SimLex share a word


@pytest.mark.parametrize("name", NAMES)
def test_the_point_of_the_interval_is_mtebs_score(bag, name: str):
    score, interval = bag[name]
    # mteb rounds the metrics of rankings to five digits.
    rounded = registry.get_task(name).type in ("Retrieval", "Reranking")
    assert interval.score == pytest.approx(score, abs=5.1e-6 if rounded else 1e-9, nan_ok=True)
    if name not in ("OfflineWordSimSTS", "OfflineSimLexSTS"):  # all but equal words look alike
        assert interval.low < score < interval.high


def _shuffled(data: offline_suite.Data, rng: np.random.Generator) -> offline_suite.Data:
    """The same texts with their labels dealt anew."""

    def deal(labels: list) -> list:
        return [labels[i] for i in rng.permutation(len(labels))]

    if "corpus" in data:
        pools = data["candidates"] or dict.fromkeys(data["queries"], sorted(data["corpus"]))
        relevant = {
            query: [str(d) for d in rng.choice(pools[query], len(found), replace=False)]
            for query, found in data["relevant"].items()
        }
        return data | {"relevant": relevant}
    if "train" in data:
        return {part: d | {"label": deal(d["label"])} for part, d in data.items()}
    if "sentences" in data:
        return data | {"labels": [deal(labels) for labels in data["labels"]]}
    key = "score" if "score" in data else "labels"
    return data | {key: deal(data[key])}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_minilm_is_above_chance_and_shuffled_labels_are_at_chance(
    data, minilm: _Encoder, tmp_path: Path, monkeypatch, name: str
):
    score, interval = _evaluate(minilm, offline_suite.build_task(name), tmp_path)
    assert interval.low > CHANCE[name] + 0.02
    assert interval.high < 0.95

    rng = np.random.default_rng(0)
    shuffled = []
    for _ in range(6):
        dealt = _shuffled(data[name], rng)
        monkeypatch.setattr(offline_suite, "_verified", lambda name, dealt=dealt: dealt)
        shuffled.append(_score(minilm, offline_suite.build_task(name)))
    assert np.mean(shuffled) == pytest.approx(CHANCE[name], abs=0.07)
    assert max(shuffled) < score


@pytest.mark.slow
def test_echo_shortens_none_of_the_texts(data):
    """Its records are of whole texts, both times."""
    _need("smollm2-135m-gguf")
    from transformers import AutoTokenizer

    model = registry.get_model("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(assets.model_folder(model.name))
    for name in NAMES:
        instruction = format_instruction(registry.get_task(name).instruction)
        pairs = [(instruction, text) for text in _texts(data[name])]
        whole = [build_prompt(*pair, model, echo=True) for pair in pairs]
        assert build_prompts(pairs, tokenizer, model, echo=True) == whole


@pytest.mark.slow
def test_token_budget(data):
    _need("smollm2-135m-gguf")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets.model_folder("smollm2-135m"))
    read = set()
    for name in NAMES:
        task = registry.get_task(name)
        documents = () if task.symmetric else set(data[name]["corpus"].values())
        read |= {("" if t in documents else task.instruction, t) for t in _texts(data[name])}
    tokens = sum(len(tokenizer(f"{a}: {b}" if a else b).input_ids) for a, b in read)
    assert 40_000 < tokens < 48_000
