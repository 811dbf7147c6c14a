"""``ADAPTERS=published``: the authors' adapters, from local folders laid out like theirs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_adapters import make_adapter
from tiny_mirror import add_task, few_resamples

from llm2vec import encoder as encoder_module
from llm2vec.adapters import adapter_hash
from llm2vec.attention import check_attention, set_attention
from llm2vec.encoder import load_encoder
from llm2vec.errors import AdapterError
from llm2vec.evaluation import execute, plan
from llm2vec.loading import merge_adapter
from llm2vec.registry import MODELS, UNPINNED, get_task
from llm2vec.results import Key, iter_records, read_record

pytestmark = pytest.mark.filterwarnings("ignore:An input array is constant")
PAPER = [m.name for m in MODELS.values() if m.in_paper and m.published]
TEXTS = ["The fox jumps over the dog.", "One word after another."]


def published_folder(folder: Path, model: Any, seed: int) -> Path:
    """What a repository of the authors holds beside the adapter: a configuration, a note, code."""
    make_adapter(model, folder, seed)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": "somewhere/else"}
    file.write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "code.Model"}}))
    (folder / "llm2vec_config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    (folder / "code.py").write_text("raise SystemExit('code of a repository ran')\n")
    (folder / "README.md").write_text("a model card\n")
    return folder


@pytest.fixture
def folders(
    make_tiny_llama: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Path]]:
    """Both stages of each of the paper's models, by hub id below the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        encoder_module, "load_backbone",
        lambda *_, **__: ((tiny := make_tiny_llama()).model.model, tiny.tokenizer),
    )  # fmt: skip

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub should not be asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    return {
        name: {
            stage: published_folder(tmp_path / hub_id, make_tiny_llama().model.model, 10 * i + j)
            for j, (stage, (hub_id, _)) in enumerate(MODELS[name].published.items())
        }
        for i, name in enumerate(PAPER)
    }


def test_the_paper_has_four_models_with_two_published_stages_each() -> None:
    assert PAPER == ["s-llama-1.3b", "llama-2-7b", "mistral-7b", "llama-3-8b"]
    ids = [hub_id for name in PAPER for hub_id, _ in MODELS[name].published.values()]
    assert len(set(ids)) == 8
    assert all(hub_id.startswith("McGill-NLP/LLM2Vec-") for hub_id in ids)
    for name in PAPER:
        stages = MODELS[name].published
        assert set(stages) == {"mntp", "mntp-simcse"}
        assert stages["mntp-simcse"][0] == stages["mntp"][0] + "-unsup-simcse"


@pytest.mark.parametrize("name", PAPER)
def test_both_stages_are_merged_in_order(
    make_tiny_llama: Callable[..., Any], folders: dict[str, dict[str, Path]], name: str
) -> None:
    first, second = folders[name]["mntp"], folders[name]["mntp-simcse"]
    vectors = {}
    for variant, stages in (("bi", []), ("bi-mntp", [first]), ("bi-mntp-simcse", [first, second])):
        loaded = load_encoder(name, variant, adapters="published", device="cpu")
        assert loaded.adapters == tuple(map(adapter_hash, stages))
        check_attention(loaded.backbone, True)
        expected = make_tiny_llama().model.model
        set_attention(expected, True)
        for stage in stages:
            expected = merge_adapter(expected, stage)
        loaded_vectors = loaded.encode_poolings(TEXTS)["mean"]
        loaded.backbone = expected
        by_hand = loaded.encode_poolings(TEXTS)["mean"]
        np.testing.assert_allclose(loaded_vectors, by_hand, atol=2e-5)
        vectors[variant] = loaded_vectors
    assert np.abs(vectors["bi"] - vectors["bi-mntp"]).max() > 0.1
    assert np.abs(vectors["bi-mntp"] - vectors["bi-mntp-simcse"]).max() > 0.1


def test_a_run_with_published_adapters_has_records_of_its_own(
    folders: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llm2vec.mteb_tasks.bootstrap_interval", few_resamples)
    add_task(tmp_path / "mirror", get_task("STS17"))
    results = tmp_path / "results"
    run = plan(
        "mistral-7b", "bi-mntp", "subset", results, task="STS17", pooling="mean",
        adapters="published",
    )  # fmt: skip
    assert execute(run, device="cpu") == 1
    assert execute(run, device="cpu") == 0
    key = Key("mteb_subset", "mistral-7b", "bi-mntp", "mean", "STS17", "published")
    record = read_record(key.path(results))
    assert record.adapters == (adapter_hash(folders["mistral-7b"]["mntp"]),)
    assert len(list(iter_records(results))) == 1
    # Another adapter under the same name is another run.
    make_other = folders["mistral-7b"]["mntp"] / "adapter_model.safetensors"
    make_other.write_bytes((folders["llama-2-7b"]["mntp"] / make_other.name).read_bytes())
    assert execute(run, device="cpu") == 1


def test_without_folders_the_hub_is_asked_for_the_pinned_revisions(
    folders: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, local = (
        [],
        {str(p.relative_to(tmp_path)): p for s in folders.values() for p in s.values()},
    )

    def download(hub_id: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        asked.append((hub_id, revision))
        assert not {"*.py", "*"} & set(allow_patterns)
        return str(local[hub_id])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_encoder("s-llama-1.3b", "bi-mntp-simcse", adapters="published", device="cpu")
    pins = MODELS["s-llama-1.3b"].published.values()
    assert asked == [(hub_id, None if pin == UNPINNED else pin) for hub_id, pin in pins]


def test_a_published_adapter_of_another_backbone_is_refused(
    make_tiny_llama: Callable[..., Any], folders: dict[str, dict[str, Path]]
) -> None:
    make_adapter(make_tiny_llama(num_hidden_layers=3).model.model, folders["mistral-7b"]["mntp"], 1)
    with pytest.raises(AdapterError, match="another backbone"):
        load_encoder("mistral-7b", "bi-mntp", adapters="published", device="cpu")
