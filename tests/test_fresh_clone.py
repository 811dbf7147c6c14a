"""A fresh clone: what is committed is done, by the records and the adapters beside them alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm2vec import adapters, results
from llm2vec.grid import Cell, Selection
from llm2vec.registry import get_model, get_variant
from llm2vec.results import iter_records

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "results" / "adapters"
SMOLLM2 = "smollm2-135m"
ASIDE = ("ablations", "attention_sink")  # questions beside the paper: not in its grid


def cell_of(record: results.Record, root: Path) -> Cell:
    suites = {"offline_suite": "offline", "mteb_subset": "subset", "mteb_full": "full"}
    own = {"word_probing": "words", "pooling_leakage": "leakage", "layer_similarity": "layers"}
    source = "published" if "published" in str(record.setting) else "own"
    part = (suites | own)[record.experiment]
    asked = Selection((part,), models=(record.model,), adapters=source, results=root)
    return Cell(part, get_model(record.model), get_variant(record.variant), asked)


@pytest.mark.parametrize("at_hand", [True, False], ids=["shipped adapters", "no adapters"])
def test_in_a_fresh_clone_what_is_committed_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_hand: bool
) -> None:
    """Other times, no cache, no data: the records decide, and that they are of these adapters."""
    shutil.copytree(ROOT / "results" / "raw", tmp_path / "raw", copy_function=shutil.copyfile)
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "none"))
    shipped = SHIPPED if at_hand else tmp_path / "none"
    monkeypatch.setattr("llm2vec.paths.shipped_adapters_dir", lambda: shipped)
    in_grid, adapted = 0, []
    cells: dict[str, tuple[set[Path], set[Path]]] = {}
    for record in iter_records(tmp_path):
        if record.experiment in ASIDE or record.task.startswith("mini-"):
            continue
        cell = cell_of(record, tmp_path)
        if cell.name not in cells:
            cells[cell.name] = tuple(map(set, cell.records()))
            adapted += [cell] if record.adapters and cell.selection.adapters == "own" else []
        every, missing = cells[cell.name]
        path = record.key.path(tmp_path)
        assert path not in missing
        in_grid += path in every
    assert in_grid >= 140
    assert adapted and all(bool(cell.untrained) != at_hand for cell in adapted)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone brings, with file times of its own."""
    root = tmp_path_factory.mktemp("clone")
    for folder in ("llm2vec", "experiments", "results/raw", "results/adapters"):
        shutil.copytree(ROOT / folder, root / folder, copy_function=shutil.copyfile)
    return root


def dry_run(clone: Path, *arguments: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "experiments/grid.py", *arguments, "--dry-run"],
        cwd=clone, capture_output=True, text=True,
        env=os.environ | {
            "PYTHONPATH": str(clone), "LLM2VEC_CACHE": str(clone / "no"),
            "LLM2VEC_CHECKPOINTS": str(clone / "none"),
        },
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["offline"], ["analyses", "--model=smollm2-135m,minilm-l6"],
     ["mteb", "--suite=short6", "--variant=uni"]],
    ids=" ".join,
)  # fmt: skip
def test_a_fresh_clone_has_nothing_to_run(clone: Path, arguments: list[str]) -> None:
    """The command itself, for what has been measured completely."""
    assert dry_run(clone, *arguments) == ("Nothing to do: every record is there.\n", "")
    assert not (clone / "no").exists() and not (clone / "build").exists()


def test_a_fresh_clone_runs_again_what_another_adapter_would_change(clone: Path) -> None:
    """Nothing else tells that a record is of other weights than those that lie beside it."""
    weights = clone / "results" / "adapters" / SMOLLM2 / "mntp" / adapters.ADAPTER_WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        out, _ = dry_run(clone, "analyses")
    finally:
        weights.write_bytes(content)
    jobs = {line.split()[0] for line in out.splitlines() if line.startswith("leakage.")}
    assert jobs == {f"leakage.{SMOLLM2}.bi-mntp", f"leakage.{SMOLLM2}.bi-mntp-simcse"}
