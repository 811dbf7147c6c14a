"""An exported folder by a name in mteb: from the disk after `register`, or from a hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mteb
import pytest
from datasets import Dataset, DatasetDict
from model_hub import COMMIT, serve
from mteb.models.model_implementations import MODEL_REGISTRY
from scipy.stats import spearmanr

from llm2vec import LLM2Vec
from llm2vec.errors import SettingError
from llm2vec.export import cosines, export
from llm2vec.mteb_name import register
from llm2vec.prompts import format_instruction
from llm2vec.registry import TASKS

LEFT = ["the other dog", "fox", "dog", "the words from left to right", "then a café"]
RIGHT = [*LEFT[1:], "reads"]
GOLD = [0.0, 5.0, 1.0, 3.0, 2.0]
ROWS = {"sentence1": LEFT, "sentence2": RIGHT, "score": GOLD}
NAME = "me/my-encoder"


def small_task() -> mteb.AbsTask:
    """STSBenchmark with five pairs."""
    task = mteb.get_task("STSBenchmark")
    task.dataset, task.data_loaded = DatasetDict({"test": Dataset.from_dict(ROWS)}), True
    return task


def expected(encoder: LLM2Vec) -> float:
    """Its score by `encode` alone, with the paper's instruction."""
    instruction = format_instruction(TASKS["STSBenchmark"].instruction)
    one, other = (
        encoder.encode([(instruction, text) for text in side], convert_to_numpy=True)
        for side in (LEFT, RIGHT)
    )
    return float(spearmanr(cosines(one, other), GOLD).statistic)


@pytest.fixture
def exported(make_tiny_llama, tmp_path: Path) -> list[tuple[LLM2Vec, Path]]:
    """Two encoders of other weights, in folders of one name."""
    made = []
    for seed in (0, 1):
        lm, tokenizer = make_tiny_llama(seed=seed)
        lm.save_pretrained(tmp_path / f"model{seed}")
        tokenizer.save_pretrained(tmp_path / f"model{seed}")
        encoder = LLM2Vec.from_pretrained(tmp_path / f"model{seed}", device="cpu")
        made.append((encoder, export(encoder, tmp_path / str(seed) / "my-encoder", scores=[])))
    return made


@pytest.fixture(autouse=True)
def mteb_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    names = dict(MODEL_REGISTRY)
    yield
    for name in set(MODEL_REGISTRY) - set(names):
        del MODEL_REGISTRY[name]


def test_the_name_and_the_cache_tell_two_encoders_apart(exported, tmp_path: Path) -> None:
    cache = mteb.ResultCache(tmp_path / "cache")
    scores = []
    for encoder, folder in exported:
        meta = register(folder, NAME)
        assert mteb.get_model_meta(NAME) == meta
        model = mteb.get_model(NAME, device="cpu")
        assert model.mteb_model_meta.embed_dim == 32
        for given in (meta, model):  # the second is answered from the cache
            (done,) = mteb.evaluate(given, small_task(), cache=cache).task_results
            score = done.scores["test"][0]["cosine_spearman"]
            assert score == pytest.approx(expected(encoder), abs=1e-6)
        scores.append(score)
    assert scores[0] != scores[1]
    found = {f.parent.parent.name for f in (tmp_path / "cache").rglob("STSBenchmark.json")}
    assert found == {"me__my-encoder"}


def test_the_revision_is_that_of_the_content(exported) -> None:
    (_, one), (_, other) = exported
    first = register(one).revision
    assert mteb.get_model_meta("local/my-encoder").revision == first
    (one / "README.md").write_text("another card")
    assert register(one).revision == first
    assert register(other).revision != first
    settings = one / "config_sentence_transformers.json"
    settings.write_text(settings.read_text().replace("similar", "other"))
    assert register(one).revision != first


def test_what_mteb_cannot_use_is_refused(exported, tmp_path: Path) -> None:
    _, folder = exported[0]
    with pytest.raises(SettingError, match="model0 is no exported encoder"):
        register(tmp_path / "model0")
    for name in ("my-encoder", "a/b/c"):
        with pytest.raises(SettingError, match="give one like me/my-encoder"):
            register(folder, name)
    taken = "sentence-transformers/all-MiniLM-L6-v2"
    before = MODEL_REGISTRY[taken]
    with pytest.raises(SettingError, match="is a model of mteb"):
        register(folder, taken)
    assert MODEL_REGISTRY[taken] is before


ALONE = f"""
import json, sys
import mteb
from datasets import Dataset, DatasetDict

task = mteb.get_task("STSBenchmark")
task.dataset, task.data_loaded = DatasetDict({{"test": Dataset.from_dict({ROWS!r})}}), True
model = mteb.get_model({NAME!r}, device="cpu")
(done,) = mteb.evaluate(model, task, cache=None).task_results
assert "llm2vec" not in sys.modules
print(json.dumps([model.mteb_model_meta.revision, done.scores["test"][0]["cosine_spearman"]]))
"""


WITH_US = f"""
import json
from llm2vec import LLM2Vec

encoder = LLM2Vec.from_pretrained({NAME!r}, device="cpu")
print(json.dumps([encoder.model.revision, encoder.encode(["a fox"]).tolist()]))
"""


@pytest.mark.slow
def test_weights_of_an_uploaded_folder_come_at_the_commit_of_its_settings(
    exported, tmp_path: Path
) -> None:
    """A push between two downloads does not mix them: only the first asks for the branch."""
    encoder, folder = exported[0]
    asked: list[str] = []
    done = run_with_hub(WITH_US, folder, tmp_path, asked)
    revision, vectors = json.loads(done.splitlines()[-1])
    assert revision == COMMIT
    assert vectors[0] == pytest.approx(encoder.encode(["a fox"]).tolist()[0], abs=1e-5)
    files = [path for path in asked if "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in files)
    assert {path.split("/resolve/")[1].split("/")[0] for path in files} == {COMMIT}


@pytest.mark.slow
def test_weights_of_a_pull_request_are_never_taken(make_tiny_llama, tmp_path: Path) -> None:
    """For a model without safetensors transformers asks for a bot's pull request by itself."""
    lm, tokenizer = make_tiny_llama(seed=0)
    folder, asked = tmp_path / "pickled", []
    lm.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    program = f"""
from llm2vec.loading import ModelNotFoundError, load_backbone
try:
    load_backbone({NAME!r}, device="cpu")
except ModelNotFoundError as error:
    print(error)
"""
    said = run_with_hub(program, folder, tmp_path, asked)
    assert "no weights as safetensors" in said and "never loaded" in said
    assert any(path.endswith("/config.json") for path in asked)
    assert not any("discussions" in path or "refs" in path for path in asked)


@pytest.mark.slow
def test_an_uploaded_folder_needs_its_name_alone(exported, tmp_path: Path) -> None:
    """mteb asks a hub, as `mteb run --model NAME` does, and nothing of this package takes part."""
    encoder, folder = exported[0]
    done = run_with_hub(ALONE, folder, tmp_path)
    revision, score = json.loads(done.splitlines()[-1])
    assert revision == COMMIT and score == pytest.approx(expected(encoder), abs=1e-6)


def run_with_hub(program: str, folder: Path, tmp_path: Path, asked: list[str] | None = None) -> str:
    """What a program prints beside a hub that has ``folder``."""
    with serve(folder, NAME, asked) as hub:
        env = os.environ | {
            "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
