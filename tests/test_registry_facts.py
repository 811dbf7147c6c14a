"""One place per fact: nothing of the registry is written a second time."""

import ast
from pathlib import Path

from llm2vec.registry import (
    MODELS,
    SUITES,
    TASKS,
)

# --------------------------------------------------------------------------- one place per fact
# A remark about one task, and each offline task beside the function that makes it.
MAY_NAME_TASKS = {
    "analysis/tables_checks.py": {"MassiveIntentClassification"},
    "llm2vec/offline_suite.py": set(SUITES["offline"]),
}


def source_files(repo_root: Path) -> list[Path]:
    folders = ("llm2vec", "experiments", "analysis")
    files = [file for folder in folders for file in (repo_root / folder).rglob("*.py")]
    assert len(files) > 20
    return [file for file in files if not file.name.startswith("registry")]


def literals(tree: ast.AST) -> list[str]:
    """String constants that are no docstrings."""
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documents
    ]


def test_model_ids_are_written_in_the_registry_alone(repo_root: Path) -> None:
    ids = {m.hub_id for m in MODELS.values()}
    ids |= {hub_id for m in MODELS.values() for hub_id, _ in m.published.values()}
    found = [
        (file.name, text)
        for file in source_files(repo_root)
        for text in literals(ast.parse(file.read_text()))
        if any(hub_id in text for hub_id in ids)
    ]
    assert found == []


def test_task_names_are_written_in_the_registry_alone(repo_root: Path) -> None:
    found = []
    for file in source_files(repo_root):
        path = file.relative_to(repo_root).as_posix()
        names = set(TASKS) & set(literals(ast.parse(file.read_text())))
        found += [(path, name) for name in names - MAY_NAME_TASKS.get(path, set())]
    assert found == []


def learning_rates(tree: ast.AST) -> list[float]:
    """Numbers given to anything that is called a learning rate."""
    names = {"learning_rate", "lr"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in names:
            found.append(node.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id.lower() in names for t in targets):
                found.append(node.value)
        elif isinstance(node, ast.Dict):
            found += [
                value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value in names
            ]
        elif isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            given = positional[len(positional) - len(node.defaults) :] + node.kwonlyargs
            found += [
                default
                for argument, default in zip(
                    given, [*node.defaults, *node.kw_defaults], strict=True
                )
                if argument.arg in names
            ]
    constants = (node for node in found if isinstance(node, ast.Constant))
    return [node.value for node in constants if isinstance(node.value, int | float)]


def test_learning_rates_are_written_in_the_registry_alone(repo_root: Path) -> None:
    registry_tree = ast.parse((repo_root / "llm2vec" / "registry.py").read_text())
    assert {3e-5, 5e-5, 5e-4} <= set(learning_rates(registry_tree))  # the check sees them
    found = [
        (file.name, rate)
        for file in source_files(repo_root)
        for rate in learning_rates(ast.parse(file.read_text()))
    ]
    assert found == []
