"""Pooling leakage from triples to a record: statistics, record, script."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from leakage_help import BI, TRIPLES, UNI, cosines_of, triple_line, write_lines

import llm2vec.encoder
from llm2vec import leakage, representations
from llm2vec.attention import set_attention
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import RecordError, SettingError, UnknownNameError
from llm2vec.leakage import TripleSet, prefix_cosines
from llm2vec.provenance import capture_provenance
from llm2vec.registry import get_model, get_variant
from llm2vec.results import read_record


# --------------------------------------------------------------------------- statistics
def test_ties_count_half_and_have_no_evidence() -> None:
    found = leakage.summarise(cosines_of([1.0, 1.0, 1 - 4e-6], [1.0, 1 - 4e-6, 1.0]))
    assert found["score"] == 0.5
    assert found["interval"] == (0.5, 0.5)
    assert found["scores"]["ties"] == 3
    assert (found["scores"]["p"], found["scores"]["gap"]) == (1.0, 0.0)


def test_summary_of_known_cosines() -> None:
    found = leakage.summarise(cosines_of([0.9, 0.8, 0.7, 0.5], [0.5, 0.6, 0.7, 0.6]))
    assert found["score"] == 2.5 / 4
    scores = found["scores"]
    assert scores["cosine_positive"] == pytest.approx(2.9 / 4)
    assert scores["cosine_negative"] == pytest.approx(2.4 / 4)
    assert scores["gap"] == pytest.approx(0.5 / 4)
    # Ranks of |0.4|, |0.2|, |-0.1| are 3, 2, 1: the smaller signed sum is 1; exact p = 4 / 8.
    assert (scores["wilcoxon"], scores["p"]) == (1.0, pytest.approx(0.5))
    low, high = scores["gap_interval"]
    assert -0.1 <= low < scores["gap"] < high <= 0.4


def test_shuffled_roles_leave_no_gap() -> None:
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(0.9, 0.02, 200), rng.normal(0.8, 0.02, 200)
    real = leakage.summarise(cosines_of(positive, negative))
    assert real["score"] > 0.95
    assert real["scores"]["gap_interval"][0] > 0.09
    assert real["scores"]["p"] < 1e-10
    swap = rng.permutation(200) < 100
    shuffled = leakage.summarise(
        cosines_of(np.where(swap, negative, positive), np.where(swap, positive, negative))
    )
    low, high = shuffled["scores"]["gap_interval"]
    assert low < 0 < high
    assert shuffled["scores"]["p"] > 0.05


def test_interval_is_deterministic_and_needs_two_values() -> None:
    values = np.random.default_rng(0).normal(size=50)
    low, high = representations.mean_interval(values)
    assert (low, high) == representations.mean_interval(values)
    # Normal theory: mean +- 1.96 standard errors.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(50), rel=0.05)
    assert representations.mean_interval(values[:1]) is None


def test_cosine_golden() -> None:
    left, right = np.array([[1.0, 0], [3, 4], [1, 1]]), np.array([[0, 2.0], [3, 4], [-2, -2]])
    np.testing.assert_allclose(representations.cosine(left, right), [0, 1, -1])


# --------------------------------------------------------------------------- record
@pytest.fixture
def own_set(tmp_path: Path) -> TripleSet:
    fields = ("id", "a", "b", "c", "d")
    lines = [json.dumps({f: getattr(t, f) for f in fields}) for t in TRIPLES]
    return leakage.load_triples(write_lines(tmp_path / "mine.jsonl", *lines))


def test_record_and_resume(tiny_llama: Any, own_set: TripleSet, tmp_path: Path) -> None:
    model = get_model("smollm2-135m")
    set_attention(tiny_llama.model.model, True)
    found = prefix_cosines(tiny_llama.model.model, tiny_llama.tokenizer, own_set.triples)
    adapters = ("f" * 64,)
    record = leakage.make_record(
        found, model, BI, own_set, adapters=adapters, provenance=capture_provenance()
    )
    settings = leakage.settings_of(model, BI, own_set)

    def done(settings: dict = settings, adapters: tuple[str, ...] = adapters) -> bool:
        return representations.is_complete(record.key, tmp_path, ".parquet", settings, adapters)

    assert not done()
    path = representations.write_with_arrays(record, tmp_path, ".parquet", found.save)
    folder = tmp_path / "raw/pooling_leakage/smollm2-135m/bi/none"
    assert path == folder / "triples@mine.json"
    assert sorted(p.name for p in folder.iterdir()) == ["triples@mine.json", "triples@mine.parquet"]
    assert done()
    assert not done(adapters=())
    assert not done(settings=leakage.settings_of(model, BI, leakage.load_triples()))
    assert not done(settings=leakage.settings_of(model, BI, own_set, "bfloat16"))
    back = read_record(path)
    table = pd.read_parquet(folder / "triples@mine.parquet")
    assert list(table.columns) == ["id", "cos_pos", "cos_neg"]
    assert list(table["id"]) == ["1", "2", "3"]
    assert (table["cos_pos"] > table["cos_neg"]).mean() == back.score
    assert back.scores["gap"] == pytest.approx((table["cos_pos"] - table["cos_neg"]).mean())
    (folder / "triples@mine.parquet").unlink()
    assert not done()


def test_failed_write_leaves_neither_file(
    tiny_llama: Any, own_set: TripleSet, tmp_path: Path
) -> None:
    found = prefix_cosines(tiny_llama.model.model, tiny_llama.tokenizer, own_set.triples)
    record = leakage.make_record(
        found, get_model("smollm2-135m"), UNI, own_set, adapters=(), provenance=capture_provenance()
    )
    path = representations.write_with_arrays(record, tmp_path, ".parquet", found.save)
    array = path.with_suffix(".parquet")
    before = array.read_bytes()

    def full_disk(file: Path) -> None:
        file.write_bytes(before[:10])
        raise OSError(28, "No space left on device")

    with pytest.raises(RecordError, match="No space left"):
        representations.write_with_arrays(record, tmp_path, ".parquet", full_disk)
    assert array.read_bytes() == before, "the old arrays are still whole"
    assert not path.exists(), "no record vouches for them"
    assert [p.name for p in path.parent.iterdir()] == [array.name]


def test_departures_from_the_setting_are_named(own_set: TripleSet) -> None:
    model, own = get_model("smollm2-135m"), leakage.load_triples()
    assert leakage.key_of(model, UNI, own, "torch.float32").setting is None
    assert leakage.key_of(model, UNI, own, "bfloat16").setting == "bfloat16"
    assert leakage.key_of(model, UNI, own_set, "bfloat16").setting == "mine-bfloat16"


def test_the_authors_adapters_are_named_where_there_are_adapters(own_set: TripleSet) -> None:
    model, mntp, own = get_model("mistral-7b"), get_variant("bi-mntp"), leakage.load_triples()
    assert leakage.key_of(model, mntp, own, whose="own").setting is None
    assert leakage.key_of(model, mntp, own, whose="published").setting == "published"
    assert leakage.key_of(model, UNI, own, whose="published").setting is None
    key = leakage.key_of(model, mntp, own_set, "float16", "published")
    assert key.setting == "mine-float16-published"
    with pytest.raises(SettingError, match=r"'published' cannot name a record.*Rename the file"):
        leakage.key_of(model, mntp, TripleSet(own_set.triples, "0", "published"))


def test_file_name_that_cannot_name_a_record(tmp_path: Path) -> None:
    bad = leakage.load_triples(write_lines(tmp_path / "my own.jsonl", triple_line()))
    with pytest.raises(SettingError, match="my own"):
        leakage.key_of(get_model("smollm2-135m"), UNI, bad)


# --------------------------------------------------------------------------- the script
@pytest.fixture
def script(repo_root: Path) -> ModuleType:
    file = repo_root / "experiments" / "06_pooling_leakage.py"
    spec = importlib.util.spec_from_file_location("pooling_leakage", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_runs_once_unless_forced(
    script: ModuleType,
    tiny_llama: Any,
    own_set: TripleSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[str] = []

    def load(model: str, variant: str, **_: Any) -> LLM2Vec:
        loads.append(variant)
        return LLM2Vec(
            tiny_llama.model.model, tiny_llama.tokenizer, model=get_model(model), variant=UNI
        )

    monkeypatch.setattr(llm2vec.encoder, "load_encoder", load)
    arguments = {"variant": "uni", "triples": tmp_path / "mine.jsonl", "results": tmp_path}
    for force in (False, False, True):
        script.main("smollm2-135m", force=force, **arguments)
    assert loads == ["uni", "uni"]
    path = tmp_path / "raw/pooling_leakage/smollm2-135m/uni/none/triples@mine.json"
    assert read_record(path).score == 0.5


def test_a_run_with_published_adapters_leaves_the_own_one_alone(
    script: ModuleType, tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "load_triples", lambda _: TripleSet(TRIPLES, "0"))
    set_attention(tiny_llama.model.model, "bidirectional")
    loads: list[str] = []

    def load(model: str, variant: str, *, adapters: str, **_: Any) -> LLM2Vec:
        loads.append(adapters)
        encoder = LLM2Vec(
            tiny_llama.model.model, tiny_llama.tokenizer, model=get_model(model),
            variant=get_variant(variant),
        )  # fmt: skip
        encoder.adapters = (adapters,)
        return encoder

    monkeypatch.setattr(llm2vec.encoder, "load_encoder", load)
    monkeypatch.setattr("llm2vec.analyses.adapter_folders", lambda *_: ["own"])
    monkeypatch.setattr("llm2vec.analyses.published_adapters", lambda *_: ["published"])
    monkeypatch.setattr("llm2vec.analyses.adapter_hash", str)
    for adapters in ("own", "published", "own", "published"):
        script.main("smollm2-135m", "bi-mntp", adapters=adapters, results=tmp_path)
    assert loads == ["own", "published"], "each is found again"
    folder = tmp_path / "raw/pooling_leakage/smollm2-135m/bi-mntp/none"
    assert read_record(folder / "triples.json").adapters == ("own",)
    assert read_record(folder / "triples@published.json").adapters == ("published",)
    assert len(list(folder.iterdir())) == 4, "with the cosines of each"


def test_script_refuses_names_that_do_not_fit(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        script.main("no-model", "uni", results=tmp_path)
    with pytest.raises(SettingError, match=r"minilm-l6 has no variant bi\. Valid: encoder\."):
        script.main("minilm-l6", "bi", results=tmp_path)
    assert not list(tmp_path.iterdir())
