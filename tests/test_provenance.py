"""Where a number comes from: the commit, whether the tree is dirty, when it began."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from llm2vec import analyses, layers, leakage, provenance, word_evaluation
from llm2vec.provenance import capture_provenance, git_state
from llm2vec.registry import PROBE
from llm2vec.results import read_record


def git(repository: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(repository), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The state is read once per process; here, once per test."""
    monkeypatch.delenv("LLM2VEC_COMMIT", raising=False)
    for cached in (provenance._tree, provenance._warn):
        cached.cache_clear()
    yield
    for cached in (provenance._tree, provenance._warn):
        cached.cache_clear()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean repository of one commit that stands in for this one."""
    root = tmp_path / "repository"
    (root / "llm2vec").mkdir(parents=True)
    (root / "results" / "raw").mkdir(parents=True)
    (root / "llm2vec" / "code.py").write_text("x = 1\n")
    (root / "results" / "raw" / "old.json").write_text("{}\n")
    (root / "experiments" / "profiles" / "slurm").mkdir(parents=True)
    (root / "experiments" / "profiles" / "slurm" / "config.yaml").write_text("jobs: 1\n")
    (root / ".gitignore").write_text("build/\n")
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(provenance, "ROOT", root)
    return root


def change_code(root: Path) -> None:
    (root / "llm2vec" / "code.py").write_text("x = 2\n")


def add_code(root: Path) -> None:
    (root / "llm2vec" / "new.py").write_text("y = 1\n")


def stage_code(root: Path) -> None:
    change_code(root)
    git(root, "add", ".")


def delete_code(root: Path) -> None:
    (root / "llm2vec" / "code.py").unlink()


def add_results_elsewhere(root: Path) -> None:
    (root / "llm2vec" / "results").mkdir()
    (root / "llm2vec" / "results" / "x.py").write_text("")


def add_record(root: Path) -> None:
    (root / "results" / "raw" / "new.json").write_text("{}\n")


def change_record(root: Path) -> None:
    (root / "results" / "raw" / "old.json").write_text('{"score": 1}\n')


def delete_record(root: Path) -> None:
    (root / "results" / "raw" / "old.json").unlink()


def add_benchmark(root: Path) -> None:
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "benchmarks" / "results" / "encode.json").write_text("{}")


def add_benchmark_code(root: Path) -> None:
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "encode.py").write_text("")


def build(root: Path) -> None:
    (root / "build").mkdir()
    (root / "build" / "x.py").write_text("")


def add_log(root: Path) -> None:
    (root / "slurm-123.out").write_text("done")


def add_mirror(root: Path) -> None:
    (root / "mirror" / "mteb" / "sts").mkdir(parents=True)
    (root / "mirror" / "mteb" / "sts" / "test.parquet").write_text("")


def add_profile(root: Path) -> None:
    (root / "experiments" / "profiles" / "mine").mkdir()
    (root / "experiments" / "profiles" / "mine" / "config.yaml").write_text("jobs: 2\n")


def add_own_results(root: Path) -> None:
    (root / "my-results" / "raw").mkdir(parents=True)
    (root / "my-results" / "raw" / "new.json").write_text("{}\n")


def add_environment(root: Path) -> None:
    (root / "venv" / "lib").mkdir(parents=True)
    (root / "venv" / "lib" / "six.py").write_text("")


def add_resource(root: Path) -> None:
    (root / "llm2vec" / "resources").mkdir()
    (root / "llm2vec" / "resources" / "mine.txt").write_text("")


def add_script(root: Path) -> None:
    (root / "experiments" / "numpy.py").write_text("")


def add_beside(root: Path) -> None:
    (root / "sitecustomize.py").write_text("")


def change_profile(root: Path) -> None:
    """Tracked, so it counts, wherever it lies."""
    (root / "experiments" / "profiles" / "slurm" / "config.yaml").write_text("jobs: 3\n")


def move_code(root: Path) -> None:
    git(root, "mv", "llm2vec/code.py", "llm2vec/moved.py")


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    "change",
    [
        change_code, add_code, stage_code, delete_code, move_code, add_results_elsewhere,
        add_benchmark_code, add_resource, add_script, add_beside, change_profile,
    ],
)  # fmt: skip
def test_changed_code_is_dirty(repository: Path, change: Callable[[Path], None]) -> None:
    change(repository)
    assert git_state() == (git(repository, "rev-parse", "HEAD"), True)


@pytest.mark.parametrize(
    "change",
    [
        nothing, add_record, change_record, delete_record, add_benchmark, build, add_log,
        add_mirror, add_profile, add_own_results, add_environment,
    ],
)  # fmt: skip
def test_results_and_ignored_files_are_not(
    repository: Path, change: Callable[[Path], None]
) -> None:
    """The first record of a grid must not spoil the second."""
    change(repository)
    assert git_state() == (git(repository, "rev-parse", "HEAD"), False)


def test_a_dirty_start_is_said_once_and_names_three_files(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_code(repository)
    for name in ("a", "b", "c", "d"):
        (repository / "llm2vec" / f"{name}.py").write_text("")
    git_state()
    git_state()
    (line,) = capsys.readouterr().err.splitlines()
    named = "not as committed: llm2vec/code.py, llm2vec/a.py, llm2vec/b.py and 2 more; commit that"
    assert line.startswith("warning: ") and "verify-records" in line and named in line


def test_a_clean_start_says_nothing(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_log(repository)
    git_state()
    assert capsys.readouterr().err == ""


def test_an_unknown_commit_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    git_state()
    (line,) = capsys.readouterr().err.splitlines()
    assert "work in a git clone, or set LLM2VEC_COMMIT" in line


def test_the_state_is_read_once(repository: Path) -> None:
    before = git_state()
    change_code(repository)
    assert git_state() == before
    assert capture_provenance().dirty is False


def test_git_knows_better_than_the_environment(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM2VEC_COMMIT", "f" * 40)
    assert git_state() == (git(repository, "rev-parse", "HEAD"), False)


def test_without_git_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("LLM2VEC_COMMIT", f" {'f' * 40}\n")
    assert git_state() == ("f" * 40, False)


def test_a_commit_that_git_did_not_say_is_told_apart(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Records of before this key have none, and neither have those of a clone."""
    monkeypatch.setenv("LLM2VEC_COMMIT", "f" * 40)
    assert "commit_source" not in capture_provenance().as_dict()
    provenance._tree.cache_clear()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert capture_provenance().as_dict()["commit_source"] == "stated"
    provenance._tree.cache_clear()
    monkeypatch.delenv("LLM2VEC_COMMIT")
    unknown = capture_provenance().as_dict()
    assert (unknown["commit"], "commit_source" in unknown) == ("unknown", False)


def test_a_surrounding_repository_is_not_ours(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed below somebody else's repository, its commit says nothing about this code."""
    monkeypatch.setattr(provenance, "ROOT", repository / "llm2vec")
    assert git_state() == ("unknown", True)


def test_an_unknown_commit_counts_as_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert git_state() == ("unknown", True)


def test_a_broken_repository_counts_as_dirty(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / ".git" / "HEAD").write_text("nonsense\n")
    assert git_state() == ("unknown", True)


def test_without_the_git_program(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state() == ("unknown", True)


# --------------------------------------------------------------------------- long measurements
class Clock:
    """Stands where it is until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 3, tzinfo=UTC)

    def now(self, _: object) -> datetime:
        return self.time


def words(folder: Path) -> Path:
    run = word_evaluation.plan("smollm2-135m", "uni", task="ner", data="mini", max_sentences=3)
    return word_evaluation.execute(run, folder, "cpu")[1]


def gaps(folder: Path) -> Path:
    return analyses.measure_leakage("smollm2-135m", "uni", folder, device="cpu")


def similarity(folder: Path) -> Path:
    texts = folder / "mine.txt"
    texts.write_text("The quick brown fox.")
    return analyses.measure_layers("smollm2-135m", folder, paragraphs=texts, device="cpu")


@pytest.mark.parametrize(
    ("measure", "module", "name"),
    [
        (words, word_evaluation, "corpus_features"),
        (gaps, leakage, "prefix_cosines"),
        (similarity, layers, "layer_similarity"),
    ],
)
def test_a_record_tells_of_the_code_and_the_time_at_its_start(
    repository: Path,
    fresh_cache: Path,
    make_encoder: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    measure: Callable[[Path], Path],
    module: Any,
    name: str,
) -> None:
    """Whoever edits the code during a long run spoils no record, and hides no change either."""
    clock, pass_of = Clock(), getattr(module, name)

    def load(*_: object, **__: object) -> Any:
        change_code(repository)
        return make_encoder("uni")

    def slowly(*arguments: Any, **options: Any) -> Any:
        clock.time += timedelta(hours=1)
        return pass_of(*arguments, **options)

    def backbone(*_: object, **__: object) -> Any:
        encoder = load()
        return encoder.backbone, encoder.tokenizer

    monkeypatch.setattr(provenance, "datetime", clock)
    monkeypatch.setattr("llm2vec.encoder.load_encoder", load)
    monkeypatch.setattr("llm2vec.loading.load_backbone", backbone)
    monkeypatch.setattr(word_evaluation, "PROBE", replace(PROBE, steps=2, seeds=(42,)))
    monkeypatch.setattr(module, name, slowly)
    folder = repository / "results"
    made = read_record(measure(folder)).provenance
    assert (made["dirty"], made["started"]) == (False, "2026-01-02T03:00:00+00:00")
