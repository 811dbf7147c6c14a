"""What the hub gives and refuses: one revision for all files, and errors that say what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.errors import XetDownloadError
from huggingface_hub.utils import httpx

from llm2vec import LLM2Vec, loading
from llm2vec.errors import AdapterError, SettingError
from llm2vec.loading import ModelNotFoundError, load_backbone
from llm2vec.registry import MODELS


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be spoilt at will."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def test_an_unreachable_hub_says_what_was_wanted_and_what_to_do() -> None:
    with pytest.raises(ModelNotFoundError) as error:
        load_backbone("nobody/no-such-model")
    for part in ("nobody/no-such-model", "hub can be reached", "local folder", "smollm2-135m"):
        assert part in str(error.value)
    assert "own names" not in str(error.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelNotFoundError) as error:
        load_backbone("smolm2-135m")
    assert all(name in str(error.value) for name in MODELS)


@pytest.mark.parametrize("text", [
    "You are trying to access a gated repo.\nMake sure to have access to it.",
    "401 Client Error: Unauthorized for url",
    "403 Forbidden: not in the authorized list",
])  # fmt: skip
def test_a_gated_model_says_how_to_get_a_token(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(text)

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelNotFoundError) as error:
        load_backbone("llama-2-7b")
    for part in ("meta-llama/Llama-2-7b-chat-hf", "gated", "licence", "HF_TOKEN", "hf auth login"):
        assert part in str(error.value)
    with pytest.raises(ModelNotFoundError, match="cannot load") as error:
        load_backbone("s-llama-1.3b")  # not gated: no talk of a licence
    assert "licence" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(
            "x does not appear to have a file named model.safetensors or model.safetensors.index"
            ".json and thus cannot be loaded with `safetensors`."
        ), ("no weights as safetensors", "never loaded", "save_pretrained", "HF_HUB_OFFLINE")),
        (ImportError("requires the SentencePiece library"), ("cannot load", "SentencePiece")),
    ],
)  # fmt: skip
def test_what_a_hub_model_lacks_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Exception, parts: tuple[str, ...]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", refuse)
    with pytest.raises(ModelNotFoundError) as found:
        load_backbone("deberta-v3-large")
    for part in ("microsoft/deberta-v3-large", *parts):
        assert part in str(found.value)


def test_a_pinned_revision_is_what_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(source: str, revision: str | None = None) -> None:
        asked.append((source, revision))
        raise OSError("not today")

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", refuse)
    for name in ("mistral-7b", "bert-base-simcse"):
        with pytest.raises(ModelNotFoundError, match="not today"):
            load_backbone(name)
    assert asked == [
        ("mistralai/Mistral-7B-Instruct-v0.2", MODELS["mistral-7b"].revision),
        ("princeton-nlp/unsup-simcse-bert-base-uncased", None),  # the one that is not pinned
    ]


def test_a_revision_is_that_of_weights_and_tokenizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = LLM2Vec.from_pretrained(folder, revision="main", cache_dir="there", device="cpu")
    assert encoder.model.revision == "main"
    asked: list[dict[str, object]] = []
    load = loading.AutoModel.from_pretrained
    words = loading.AutoTokenizer.from_pretrained

    def tokenizer_of(_: str, **kwargs: object) -> object:
        asked.append(kwargs)
        return words(folder)

    def model_of(_: str, **kwargs: object) -> object:
        asked.append({key: kwargs[key] for key in ("revision", "token", "cache_dir")})
        return load(folder, output_loading_info=True)

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", tokenizer_of)
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", model_of)
    given = {"revision": "v2", "token": "secret", "cache_dir": "there"}
    encoder = LLM2Vec.from_pretrained("mistral-7b", device="cpu", **given)
    assert asked == [given, given]
    assert encoder.model.revision == "v2" and encoder.model.chat


def snapshots(folder: Path, pooling: dict[str, str], asked: list[dict[str, object]]) -> Callable:
    """A hub's client: a snapshot of ``folder`` for each revision, with its pooling in it."""

    def download(hub_id: str, *, revision: str | None, allow_patterns: list[str], **told: object):
        asked.append({"revision": revision, **told})
        assert "model.safetensors" not in allow_patterns
        place = folder.parent / "hub" / "snapshots" / f"{revision or 'newest'}-commit"
        shutil.copytree(folder, place, dirs_exist_ok=True)
        values = {"pooling_mode": pooling[revision or "newest"]}
        (place / "llm2vec_config.json").write_text(json.dumps(values))
        return str(place)

    return download


@pytest.mark.parametrize(("revision", "weights_of"), [(None, "newest-commit"), ("v2", "v2-commit")])
def test_settings_weights_and_tokenizer_of_a_hub_model_are_of_one_revision(
    folder: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None, weights_of: str
) -> None:
    small: list[dict[str, object]] = []
    large: list[object] = []
    load, words = loading.AutoModel.from_pretrained, loading.AutoTokenizer.from_pretrained

    def weights(source: str, **kwargs: object) -> object:
        large.append((source, kwargs["revision"], kwargs["token"]))
        return load(folder, output_loading_info=True)

    def tokenizer(source: str, **kwargs: object) -> object:
        large.append((source, kwargs["revision"], kwargs["token"]))
        return words(folder)

    download = snapshots(folder, {"newest": "mean", "v2": "weighted_mean"}, small)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", weights)
    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", tokenizer)
    encoder = LLM2Vec.from_pretrained("me/mine", revision=revision, token="secret", device="cpu")
    assert small == [{"revision": revision, "token": "secret"}]
    assert large == [("me/mine", weights_of, "secret")] * 2
    assert encoder.model.revision == weights_of
    assert encoder.pooling == ("weighted_mean" if revision else "mean")


def test_weights_without_their_settings_are_not_an_encoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that answers again once the settings were given up: the pooling would be a guess."""

    def busy(*_: object, **__: object) -> str:
        raise OSError("503 for url\nmore")

    weights = loading.AutoModel.from_pretrained(folder, output_loading_info=True)
    words = loading.AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", busy)
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", lambda *_, **__: weights)
    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", lambda *_, **__: words)
    with pytest.raises(ModelNotFoundError, match=r"me/mine.*OSError: 503 for url more\). Run it"):
        LLM2Vec.from_pretrained("me/mine", device="cpu")


def hub_cache(folder: Path, cache: Path, files: list[str]) -> dict[str, object]:
    """A cache of the hub's client that holds some files of a model, as transformers leaves one."""
    place = cache / "models--me--half" / "snapshots" / ("c" * 40)
    place.mkdir(parents=True)
    for name in files:
        shutil.copy(folder / name, place)
    (place.parents[1] / "refs").mkdir()
    (place.parents[1] / "refs" / "main").write_text("c" * 40)
    return {"cache_dir": str(cache), "local_files_only": True, "device": "cpu"}


def test_a_snapshot_that_may_lack_its_settings_is_not_taken_for_a_model_without(
    folder: Path, tmp_path: Path
) -> None:
    plain = [path.name for path in folder.iterdir()]
    offline = hub_cache(folder, tmp_path / "plain", plain)
    with pytest.raises(ModelNotFoundError, match=r"CachedRepoTreeNotFoundError.*where the hub ans"):
        LLM2Vec.from_pretrained("me/half", **offline)
    (folder / "llm2vec_config.json").write_text(json.dumps({"pooling_mode": "eos"}))
    offline = hub_cache(folder, tmp_path / "whole", [*plain, "llm2vec_config.json"])
    encoder = LLM2Vec.from_pretrained("me/half", **offline)
    assert (encoder.pooling, encoder.model.revision) == ("eos", "c" * 40)


@pytest.mark.parametrize(
    ("causes", "parts"),
    [
        (["There was a specific connection error when trying to load x:\n401 Client Error\n\n"
          "Invalid credentials in Authorization header"], ["hub refuses the token", "unset"]),
        (["Can't load the configuration of x", "403 Forbidden by proxy.example"],
         ["proxy.example", "where the hub can be reached"]),
    ],
)  # fmt: skip
def test_the_innermost_reason_of_the_hub_is_told(
    monkeypatch: pytest.MonkeyPatch, causes: list[str], parts: list[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        error: Exception | None = None
        for text in reversed(causes):
            outer = OSError(text)
            outer.__cause__ = error
            error = outer
        raise error

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelNotFoundError) as found:
        load_backbone("s-llama-1.3b")
    assert all(part in str(found.value) for part in parts) and "\n" not in str(found.value)


@pytest.mark.parametrize("kind", [httpx.ReadTimeout, XetDownloadError])
def test_a_shard_that_breaks_off_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise kind("in the middle of model-00002-of-00007.safetensors")

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(loading.AutoModel, "from_pretrained", refuse)
    with pytest.raises(ModelNotFoundError, match=r"cannot load princeton.*00002-of-00007"):
        load_backbone("s-llama-1.3b")


def test_the_authors_adapters_come_at_the_registrys_revision_by_their_own_name_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def download(hub_id: str, *, revision: str | None, **_: object) -> str:
        asked.append((hub_id, revision))
        raise OSError("not today")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub_id, pin = MODELS["mistral-7b"].published["mntp"]
    assert len(pin) == 40
    with pytest.raises(AdapterError, match="no adapter"):
        LLM2Vec.from_pretrained("smollm2-135m", hub_id)
    with pytest.raises(ModelNotFoundError):
        LLM2Vec.from_pretrained(hub_id)
    assert asked == [(hub_id, pin)] * 2


def test_a_revision_that_nothing_has_is_refused() -> None:
    with pytest.raises(SettingError, match=r"smollm2-135m comes from PyPI.*leave revision out"):
        LLM2Vec.from_pretrained("smollm2-135m", revision="main")
