"""The Makefile, tried in a copy with a stand-in for Python, so nothing is installed here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE_VALUES = ("PYTHON", "MODEL", "VARIANT", "POOLING", "SUITE", "RESULTS", "JOBS", "UPGRADE")


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
