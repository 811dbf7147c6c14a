"""What a stranger's first minutes depend on: pins and declared dependencies."""

import ast
import importlib.metadata as metadata
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
BASE: list[str] = PYPROJECT["project"]["dependencies"]


def lines(path: str) -> list[str]:
    return [line for line in (ROOT / path).read_text().splitlines() if not line.startswith("#")]


def pins(entries: list[str]) -> dict[str, str]:
    return dict(entry.split("==") for entry in entries)


def direct(*groups: list[str]) -> list[Requirement]:
    return [Requirement(text) for group in groups for text in group]


@pytest.fixture(scope="module")
def lock_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Locks


@pytest.mark.parametrize("name", ["lock.txt", "analysis.txt"])
def test_lock_holds_plain_pins_only(name: str) -> None:
    """No addresses, options, paths, markers or local versions: it must install anywhere."""
    entries = lines(f"requirements/{name}")
    assert [e for e in entries if not re.fullmatch(r"[a-z0-9.-]+==[0-9][a-z0-9.]*", e)] == []
    assert len(pins(entries)) == len(entries) > 20


def test_lock_leaves_cuda_to_torch(lock_script: ModuleType) -> None:
    assert [e for e in lines("requirements/lock.txt") if lock_script.CUDA.match(e)] == []


def test_lock_satisfies_every_direct_dependency() -> None:
    pinned = pins(lines("requirements/lock.txt"))
    for requirement in direct(BASE, *EXTRAS.values()):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_lock_is_complete(lock_script: ModuleType) -> None:
    """Whatever the installed packages ask for, to any depth, has a pin that fits."""
    pinned = pins(lines("requirements/lock.txt"))
    todo = direct(BASE, *EXTRAS.values())
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if lock_script.CUDA.match(name):
            continue
        assert name in pinned, f"{requirement} is not pinned: run `make lock`"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} against {pinned[name]}"
        for extra in requirement.extras | {""}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                todo.extend(needs_of(name, extra))
    assert len(seen) > len(pinned) / 2


def needs_of(name: str, extra: str) -> Iterator[Requirement]:
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def test_environment_yml_has_the_pins_of_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip_section,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip_section[-1] == "--editable ."
    assert pins(pip_section[:-1]) == pins(lines("requirements/lock.txt"))
    python = next(d for d in conda if d.startswith("python"))
    assert python.startswith("python" + PYPROJECT["project"]["requires-python"])


def test_readers_of_results_need_no_torch() -> None:
    subset = pins(lines("requirements/analysis.txt"))
    assert subset.items() <= pins(lines("requirements/lock.txt")).items()
    assert subset.keys().isdisjoint({"torch", "transformers", "mteb", "datasets", "peft"})
    wanted = {canonicalize_name(r.name) for r in direct(BASE, EXTRAS["analysis"])}
    assert wanted <= subset.keys()


def test_lock_script_strips_what_belongs_to_one_machine(lock_script: ModuleType) -> None:
    compiled = (
        "# note\ntorch==2.13.0+cpu\n\nnvidia-nccl-cu13==2.29.7\ntriton==3.7.1\ntqdm==4.70.1\n"
    )
    assert lock_script.portable(compiled) == ["torch==2.13.0", "tqdm==4.70.1"]
    with pytest.raises(ValueError, match="--extra-index-url"):
        lock_script.portable("--extra-index-url https://example.org/simple\n")


# Imports


def imported_modules(folder: str) -> set[str]:
    """Top-level names of the absolute imports in the Python files below `folder`."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
    local = {"llm2vec", "analysis", "experiments", "benchmarks", "tests", "conftest"}
    local |= {path.stem for path in (ROOT / folder).rglob("*.py")}
    return names - local - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("analysis", ["analysis"]),
        ("llm2vec", ["analysis", "run", "grid"]),
        ("experiments", ["analysis", "run", "grid"]),
        ("tests", list(EXTRAS)),
    ],
)
def test_every_import_is_a_declared_dependency(folder: str, extras: list[str]) -> None:
    declared = {
        canonicalize_name(r.name) for r in direct(BASE, *(EXTRAS[extra] for extra in extras))
    }
    distributions = metadata.packages_distributions()
    undeclared = {
        module
        for module in imported_modules(folder)
        if declared.isdisjoint(map(canonicalize_name, distributions.get(module, [module])))
    }
    assert undeclared == set(), f"{folder}/ imports what pyproject.toml does not declare for it"
