"""What a stranger's first minutes depend on: pins and the Makefile.

The Makefile is tried in a copy with a stand-in for Python that notes how it is called, so
nothing is installed here.
"""

import ast
import importlib.metadata as metadata
import importlib.util
import json
import os
import re
import subprocess
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
MAKE_VALUES = ("PYTHON", "MODEL", "VARIANT", "POOLING", "SUITE", "RESULTS", "JOBS", "UPGRADE")


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


# Makefile

STAND_IN = """#!{python}
import json, pathlib, shutil, sys
arguments = sys.argv[1:]
with open("calls.jsonl", "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments[:2] == ["-m", "venv"]:
    target = pathlib.Path(arguments[2], "bin")
    target.mkdir(parents=True)
    shutil.copy(sys.argv[0], target / "python")
if "slow" in arguments:
    sys.exit(int(pathlib.Path("pytest-status").read_text()))
if "--requirement" in arguments and pathlib.Path("no-network").exists():
    sys.exit(1)
"""


class Copy:
    """A copy of the Makefile with what it depends on; `calls` lists what Python was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "requirements").mkdir()
        for name in ("Makefile", "pyproject.toml", "VERSION", "requirements/lock.txt"):
            (folder / name).write_text((ROOT / name).read_text())
            self.set_age(name, seconds=1000)
        stand_in = folder / "python"
        stand_in.write_text(STAND_IN.format(python=sys.executable))
        stand_in.chmod(0o755)

    def set_age(self, name: str, seconds: float) -> None:
        now = (self.folder / "Makefile").stat().st_ctime
        os.utime(self.folder / name, (now - seconds, now - seconds))

    def make(self, *arguments: str, **values: str) -> subprocess.CompletedProcess[str]:
        """Run make with `values` in its environment."""
        outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKEFILES"}
        outer |= {
            *MAKE_VALUES,
            "PROFILE",
            "ADAPTERS",
            "DRY",
            "DEST",
            "FROM",
            "NUMBER",
            "SEED",
            "ONLY",
        }
        environment = {k: v for k, v in os.environ.items() if k not in outer}
        return subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env=environment | {"PYTHON": "./python"} | values,
            capture_output=True,
            text=True,
        )

    @property
    def calls(self) -> list[list[str]]:
        log = self.folder / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def new_calls(self, *arguments: str, **values: str) -> list[list[str]]:
        before = len(self.calls)
        done = self.make(*arguments, **values)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.calls[before:]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy whose (stand-in) environment is complete."""
    copy = Copy(tmp_path_factory.mktemp("built"))
    assert copy.make("env").returncode == 0
    return copy


def installs(calls: list[list[str]]) -> list[list[str]]:
    return [call for call in calls if call[:3] == ["-m", "pip", "install"]]


def test_bare_make_lists_every_target_and_does_nothing(copy: Copy) -> None:
    listed = copy.make().stdout
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in phony.split():
        assert re.search(rf"^  {target} +\S.* ", listed, flags=re.MULTILINE), target
    assert copy.calls == []


def test_environment_is_built_once(copy: Copy) -> None:
    assert len(installs(copy.new_calls("env"))) == 2
    assert copy.new_calls("env") == []
    assert copy.make("-q", "env").returncode == 0


@pytest.mark.parametrize("name", ["requirements/lock.txt", "pyproject.toml", "VERSION"])
def test_environment_follows_what_it_is_made_from(copy: Copy, name: str) -> None:
    copy.new_calls("env")
    copy.set_age(".venv/.complete", seconds=100)
    copy.set_age(name, seconds=50)
    (copy.folder / ".venv" / "kept").touch()
    calls = copy.new_calls("env")
    assert len(installs(calls)) == 2
    assert (copy.folder / ".venv" / "kept").exists(), "a complete environment is updated in place"
    assert copy.new_calls("env") == []


def test_interrupted_build_starts_afresh(copy: Copy) -> None:
    (copy.folder / "no-network").touch()
    assert copy.make("env").returncode != 0
    assert not (copy.folder / ".venv" / ".complete").exists()
    (copy.folder / ".venv" / "half-written").touch()
    (copy.folder / "no-network").unlink()
    calls = copy.new_calls("env")
    assert ["-m", "venv", ".venv"] in calls
    assert not (copy.folder / ".venv" / "half-written").exists()
    assert copy.new_calls("env") == []


def test_environment_made_by_hand_is_not_removed(copy: Copy) -> None:
    copy.new_calls("env")
    (copy.folder / ".venv" / ".complete").unlink()
    (copy.folder / ".venv" / "own").touch()
    assert len(installs(copy.new_calls("env"))) == 2
    assert (copy.folder / ".venv" / "own").exists()


def test_missing_interpreter_is_named_before_anything_is_written(copy: Copy) -> None:
    done = copy.make("env", PYTHON="python-of-nowhere")
    assert done.returncode != 0
    assert "python-of-nowhere is missing or older than Python 3.11" in done.stderr
    assert not (copy.folder / ".venv").exists()


HOSTILE = (
    "x'; touch pwned; '",
    'x"; touch pwned; "',
    "$(touch pwned)",
    "$(shell touch pwned)",
    "`touch pwned`",
    "x & touch pwned #",
    "x\ntouch pwned\n",
    "--help",
)


@pytest.mark.parametrize("way", ["command line", "environment"])
@pytest.mark.parametrize("value", HOSTILE)
def test_values_reach_the_driver_as_they_are(built: Copy, value: str, way: str) -> None:
    names = ("MODEL", "VARIANT", "POOLING", "SUITE", "RESULTS", "JOBS", "PROFILE", "ADAPTERS")
    if way == "environment":
        (call,) = built.new_calls("reproduce-mteb", **dict.fromkeys(names, value))
    else:
        (call,) = built.new_calls("reproduce-mteb", *(f"{name}={value}" for name in names))
    assert not (built.folder / "pwned").exists()
    options = [f"--{name.lower()}={value}" for name in names]
    assert sorted(call) == sorted(["experiments/grid.py", "mteb", *options])


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_jobs_and_interpreter_run_nothing(built: Copy, value: str) -> None:
    assets, call = built.new_calls("test", f"JOBS={value}")
    assert assets == ["-m", "llm2vec.assets"]
    assert value in call
    (built.folder / ".venv" / ".complete").unlink()
    built.make("env", f"PYTHON={value}")
    assert not (built.folder / "pwned").exists()
    assert built.make("env").returncode == 0


@pytest.mark.parametrize(
    ("suite", "results"),
    [("offline", "build/results"), ("subset", "results"), ("full", "results")],
)
def test_quick_runs_stay_away_from_the_evidence(built: Copy, suite: str, results: str) -> None:
    (call,) = built.new_calls("reproduce-mteb", f"SUITE={suite}")
    grid, chosen = "experiments/grid.py", ["--model=smollm2-135m", "--profile=local", "--jobs=1"]
    assert call == [grid, "mteb", f"--suite={suite}", *chosen, f"--results={results}"]
    (call,) = built.new_calls("reproduce")
    assert call == [grid, "offline", "--no-train", *chosen, "--results=build/results"]


@pytest.mark.parametrize("goal", ["words", "analyses", "all", "mteb-full"])
def test_every_goal_takes_the_same_values(built: Copy, goal: str) -> None:
    values = ("MODEL=minilm-l6", "VARIANT=encoder", "PROFILE=slurm", "JOBS=20", "DRY=1")
    values += ("HOURS=12", "GPUS=4")
    (call,) = built.new_calls(f"reproduce-{goal}", *values, "ADAPTERS=published")
    assert call[:2] == ["experiments/grid.py", "mteb" if goal == "mteb-full" else goal]
    wanted = {"--model=minilm-l6", "--variant=encoder", "--profile=slurm", "--jobs=20"}
    wanted |= {"--hours=12", "--gpus=4"}
    assert wanted | {"--dry-run", "--adapters=published", "--results=results"} <= set(call)


@pytest.mark.parametrize("value", ["/x", *HOSTILE])
def test_generated_files_go_to_the_folder_that_was_named(built: Copy, value: str) -> None:
    for target, options in (("tables", []), ("figures", ["--figures"])):
        (call,) = built.new_calls(target, f"RESULTS={value}")
        assert call == ["-m", "analysis.build", *options, f"--results={value}"]
        (call,) = built.new_calls(target)
        assert call == ["-m", "analysis.build", *options]
    assert not (built.folder / "pwned").exists()


@pytest.mark.parametrize("value", HOSTILE)
def test_folders_reach_mirror_and_import_as_they_are(built: Copy, value: str) -> None:
    (call,) = built.new_calls("mirror", "SUITE=subset", f"DEST={value}", "MODEL=")
    assert call == ["-m", "llm2vec.mirror", "--suite=subset", f"--dest={value}"]
    (call,) = built.new_calls("import-results", f"FROM={value}", "DRY=1")
    assert call == ["-m", "llm2vec.transfer", f"--source={value}", "--dry-run"]
    (call,) = built.new_calls("doctor", f"MODEL={value}", f"ADAPTERS={value}")
    assert call[2:] == [f"--model={value}", "--suite=offline", f"--adapters={value}"]
    (call,) = built.new_calls("verify-records", f"ONLY={value}", f"SEED={value}")
    assert call == ["-m", "llm2vec.verify", "--number=5", f"--seed={value}", f"--only={value}"]
    assert not (built.folder / "pwned").exists()


@pytest.mark.parametrize(("pytest_status", "passes"), [(0, True), (5, True), (1, False)])
def test_having_no_slow_tests_is_no_failure(built: Copy, pytest_status: int, passes: bool) -> None:
    (built.folder / "pytest-status").write_text(str(pytest_status))
    assert (built.make("test-slow").returncode == 0) is passes


def test_clean_leaves_results_and_environment(built: Copy) -> None:
    for name in ("build", "results"):
        (built.folder / name).mkdir()
    built.new_calls("clean")
    left = {path.name for path in built.folder.iterdir()}
    assert "build" not in left
    assert {"results", ".venv"} <= left
