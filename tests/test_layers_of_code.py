"""Who may import whom: an arrow only ever points up, and reading results never waits for torch."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "mteb", "datasets", "peft", "sentence_transformers")

# The rows of the house from below; a module imports from its own row and those under it. What is
# not listed stands above them all.
BOTTOM = {
    "errors", "paths", "registry", "registry_ablations", "registry_datasets", "registry_grid",
    "registry_offline", "registry_sink", "registry_verdicts", "results", "provenance", "console",
    "adapters", "architectures", "estimates", "costs", "code_digest", "inputs", "hub", "task_sizes",
}  # fmt: skip
SECOND = BOTTOM | {
    "attention", "pooling", "prompts", "assets", "batching", "folders", "kernels",
    "mixed", "portions",
}  # fmt: skip
THIRD = SECOND | {"loading", "encoder", "data", "vectors", "lora", "stage", "training", "runs"}
ROWS = (BOTTOM, SECOND, THIRD)


def imports(file: Path) -> set[str]:
    """Modules that a file imports, at the top or inside a function, typing apart."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: import by full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def own_modules(file: Path) -> set[str]:
    """Modules of llm2vec that a file imports."""
    modules = {path.stem for path in (ROOT / "llm2vec").glob("*.py")}
    parts = (name.split(".") for name in imports(file) if name.startswith("llm2vec."))
    return {name[1] for name in parts} & modules


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def loaded_by(code: str) -> set[str]:
    """The heavy packages in a fresh process after some code, with nothing else in the way."""
    code += f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


# --------------------------------------------------------------------------- in a process
def test_the_bottom_row_imports_nothing_heavy() -> None:
    modules = ", ".join(f"llm2vec.{name}" for name in sorted(BOTTOM))
    assert loaded_by(f"import llm2vec, {modules}") == set()


def test_analysis_imports_nothing_heavy() -> None:
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in python_files("analysis")
        if file.name != "__main__.py"
    ]
    assert len(names) > 3
    assert loaded_by(f"import {', '.join(names)}") == set()


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "experiments").glob("*.py")))
def test_help_does_not_wait_for_torch(script: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path('experiments/{script}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
    )
    assert loaded_by(code) == set()


def test_the_check_sees_a_heavy_import() -> None:
    assert "datasets" in loaded_by("import datasets")


# --------------------------------------------------------------------------- by reading
@pytest.mark.parametrize("row", ROWS, ids=("bottom", "second", "third"))
def test_an_arrow_only_ever_points_up(row: set[str]) -> None:
    for name in sorted(row):
        file = ROOT / "llm2vec" / f"{name}.py"
        assert file.is_file(), f"{name} is gone: correct the rows"
        assert own_modules(file) <= row, name


def test_the_package_has_no_circular_imports() -> None:
    graph = {file.stem: own_modules(file) for file in python_files("llm2vec")}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circular: {' -> '.join(error.args[1])}")
    assert set(order) >= BOTTOM


def test_analysis_reads_the_bottom_row_alone() -> None:
    for file in python_files("analysis"):
        assert own_modules(file) <= BOTTOM, file.name


def test_the_package_needs_neither_experiments_nor_analysis() -> None:
    for file in python_files("llm2vec"):
        above = {name.split(".")[0] for name in imports(file)} & {
            "experiments",
            "analysis",
            "tests",
        }
        assert above == set(), file.name


def test_experiments_are_thin() -> None:
    """Parse, look up, one call, write: nothing that a library should know."""
    allowed = {"llm2vec", "typer", "tqdm"} | set(sys.stdlib_module_names)
    for file in python_files("experiments"):
        others = {name.split(".")[0] for name in imports(file)} - allowed
        # grid.py ends by printing what was measured.
        assert others <= ({"analysis"} if file.name == "grid.py" else set()), file.name
        assert len(file.read_text().splitlines()) < 100, file.name


def test_modules_have_one_job() -> None:
    sizes = {f.name: len(f.read_text().splitlines()) for f in python_files("llm2vec", "analysis")}
    assert {name: size for name, size in sizes.items() if size > 400} == {}


@pytest.mark.parametrize(
    "file",
    list(python_files("llm2vec", "experiments", "analysis")),
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_nothing_unsafe_or_bound_to_a_machine(file: Path) -> None:
    tree = ast.parse(file.read_text())
    named = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert not named & {"trust_remote_code", "shell"}
    assert not {name.split(".")[0] for name in imports(file)} & {"pickle", "dill", "joblib"}
    places = ("/home/", "/root/", "/work/", "/tmp/", "/mnt/", "C:\\")
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    found = [t for t in texts if isinstance(t, str) and any(place in t for place in places)]
    assert found == []


def test_locations_come_from_paths_alone() -> None:
    """Nothing else reads an environment variable of the project."""
    for file in python_files("llm2vec", "experiments", "analysis"):
        tree = ast.parse(file.read_text())
        reads = [
            argument.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call | ast.Subscript) and "environ" in ast.unparse(node)
            for argument in ast.walk(node)
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        ]
        own = {name for name in reads if name.startswith("LLM2VEC_")} - {"LLM2VEC_COMMIT"}
        assert file.name == "paths.py" or own == set(), file.name
