"""A model of the paper is trained on the paper's text, or on another that was asked for."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from llm2vec import mntp, simcse, training_text
from llm2vec.data import Source
from llm2vec.errors import DataError
from llm2vec.registry import MODELS
from llm2vec.registry_datasets import SENTENCES, STAND_IN, WIKITEXT

PAPER = [m.name for m in MODELS.values() if m.in_paper and m.mntp and m.simcse]
STAGES = ("mntp", "simcse")
TEXT = ["One text is here. Another text is there."]


class LoadedError(Exception):
    """The backbone would be loaded now."""


@pytest.fixture
def start(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call a stage's command as far as the loading of its model, on a machine without a hub."""

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    def load(*_: object, **__: object) -> None:
        raise LoadedError

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("llm2vec.offline_corpora.training_paragraphs", lambda: TEXT)
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    for module in (mntp, simcse):
        monkeypatch.setattr(module, "load_backbone", load)
    names = {"mntp": "01_train_mntp.py", "simcse": "02_train_simcse.py"}

    def run(stage: str, model: str, **options: object) -> None:
        variant = {} if stage == "mntp" else {"variant": "bi-simcse"}
        program = runpy.run_path(str(repo_root / "experiments" / names[stage]))["main"]
        program(model, output=tmp_path / "out", **variant, **options)

    return run


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", PAPER)
def test_a_model_of_the_paper_is_not_loaded_for_a_stand_in(
    start: Callable[..., None], stage: str, model: str
) -> None:
    with pytest.raises(DataError) as caught:
        start(stage, model)
    wanted = WIKITEXT if stage == "mntp" else SENTENCES
    said = (model, wanted, STAND_IN, "where the hub answers", "--data FILE", "--stand-in")
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stand_in_that_is_asked_for_is_taken(start: Callable[..., None], stage: str) -> None:
    with pytest.raises(LoadedError):
        start(stage, "mistral-7b", stand_in=True)


@pytest.mark.parametrize("stage", STAGES)
def test_text_of_ones_own_is_no_stand_in(
    start: Callable[..., None], stage: str, tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_text("A text.\n")
    with pytest.raises(LoadedError):
        start(stage, "mistral-7b", data=tmp_path / "own.txt")


@pytest.mark.parametrize("stage", STAGES)
def test_the_small_model_takes_what_there_is(
    start: Callable[..., None], stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LoadedError):
        start(stage, "smollm2-135m")
    assert "note: " in capsys.readouterr().err


def test_the_papers_text_in_a_mirror_is_enough(start: Callable[..., None], tmp_path: Path) -> None:
    for name in ("wikitext-103-raw-v1", "wiki-sentences"):
        (tmp_path / "mirror" / name).mkdir()
        table = pd.DataFrame({"text": ["A text."]})
        table.to_parquet(tmp_path / "mirror" / name / "train.parquet")
    manifest = tmp_path / "mirror" / "MANIFEST.csv"
    for status, expected in (("exact", LoadedError), ("substitute", DataError)):
        rows = (f"{n},train.parquet,{status}\n" for n in ("wikitext-103-raw-v1", "wiki-sentences"))
        manifest.write_text("dataset,file,status\n" + "".join(rows))
        for stage in STAGES:
            with pytest.raises(expected):
                start(stage, "mistral-7b")


@pytest.mark.parametrize(
    ("name", "status", "expected"),
    [
        (WIKITEXT, "exact", True),
        (WIKITEXT, "unverified", True),  # a mirror without a manifest says nothing against it
        (SENTENCES, "exact", True),
        (WIKITEXT, "Partial", False),
        (WIKITEXT, "substitute", False),
        ("wiki-sentences", STAND_IN, False),
        ("wikipedia-sample", STAND_IN, False),
    ],
)
def test_what_counts_as_the_papers_text(name: str, status: str, expected: bool) -> None:
    assert training_text.is_the_papers(Source(name, "1", "mirror", status)) == expected
