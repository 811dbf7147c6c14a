"""Names that mean harm, through every option of every command line: one line, no harm done.

What the commands and their options are is read off the programs, so that a new one is tried too.
"""

import contextlib
import importlib
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from analysis import report, tables_checks
from llm2vec import cli, console
from llm2vec.errors import LLM2VecError

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("experiments", "llm2vec", "analysis", "benchmarks", "requirements")
HOSTILE = (
    "../x", "x; touch pwned", "$(touch pwned)", "' & touch pwned '", "a\nb", "x" * 5000, "x" * 300,
    "/", "--variant",
)  # fmt: skip
# Programs without options: of `make lock`, and those that a benchmark starts by itself.
WITHOUT_OPTIONS = {
    "requirements/lock.py", "benchmarks/encode_worker.py", "benchmarks/training_worker.py",
    "benchmarks/published_encode.py", "benchmarks/published_training.py",
}  # fmt: skip
# Options that take any text or any path: nothing to refuse, but nothing may come of it either.
FREE = {"instruction", "field", "output", "out", "results", "scratch", "dest", "runs", "folder"}
VALID = {
    "model": "smollm2-135m", "variant": "uni", "goal": "offline", "group": "mntp-lr",
    "suite": "offline", "file": "TEXTS", "data": "TEXTS", "output": "new", "dest": "new",
    "source": "RESULTS", "results": "RESULTS", "runs": "new", "out": "new.npy", "folder": "new",
}  # fmt: skip
# What a command needs beside the option that is tried, where the above is not it.
BESIDE = {
    "02_train_simcse.py": {"variant": "uni-simcse"},
    "grid.py": {"goal": "mteb", "dry_run": True},
    "analysis.report": {"out": "new.html"},
}


# --------------------------------------------------------------------------- what there is
def programs() -> dict[str, Any]:
    """Function or application of every program that runs by the console; its name by file."""
    found: dict[str, Any] = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            text, place = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
            if 'if __name__ == "__main__"' not in text or place in WITHOUT_OPTIONS:
                continue
            if folder == "experiments":
                found[file.name] = runpy.run_path(str(file))["main"]
            elif place == "llm2vec/cli.py":
                found["llm2vec"] = cli.app
            else:
                name = place.removesuffix(".py").replace("/", ".")
                assert re.search(r"\brun\(main\)", text), f"{place}: no program of the console"
                found[name] = importlib.import_module(name).main
    return found


PROGRAMS = programs()


def commands() -> dict[str, Any]:
    """Every command by what a user types, with the parameters that its parser knows."""
    found = {}
    for name, main in PROGRAMS.items():
        command = typer.main.get_command(console._as_app(main))
        parts = getattr(command, "commands", None)
        found |= {f"{name} {part}": c for part, c in parts.items()} if parts else {name: command}
    return found


COMMANDS = commands()


def takes_value(parameter: Any) -> bool:
    return not getattr(parameter, "is_flag", False) and parameter.name != "help"


CASES = [
    (name, parameter.name)
    for name, command in COMMANDS.items()
    for parameter in command.params
    if takes_value(parameter)
]


def test_the_programs_are_those_that_a_user_can_start() -> None:
    """A program that is none of the console's must be named here, with its reason."""
    assert {
        "grid.py",
        "llm2vec.doctor",
        "llm2vec.mirror",
        "analysis.report",
        "benchmarks.scale",
    } <= (set(PROGRAMS))
    assert {f"0{n}" for n in range(1, 9)} <= {name[:2] for name in PROGRAMS}
    assert {"llm2vec encode", "llm2vec export", "llm2vec convert"} <= set(COMMANDS)
    for place in WITHOUT_OPTIONS:
        text = (ROOT / place).read_text(encoding="utf-8")
        assert "typer.Option" not in text and "argparse" not in text, place
    assert {("grid.py", "scratch"), ("llm2vec encode", "instruction"), ("llm2vec.mirror", "dest"),
            ("06_pooling_leakage.py", "triples"), ("benchmarks.__main__", "only"),
            ("analysis.build", "show"), ("grid.py", "goal")} <= set(CASES)  # fmt: skip
    assert len(CASES) > 100


# --------------------------------------------------------------------------- running one
class Begun(LLM2VecError):
    """The names were all right and the work would begin: a download, a process."""


class NoProcess:
    """In place of ``subprocess.Popen``: shows what would be started; git may."""

    real = subprocess.Popen

    def __new__(cls, command: Any, *arguments: Any, **options: Any) -> Any:
        assert not options.get("shell"), f"a shell string: {command!r}"
        assert not isinstance(command, str), f"a program from a string: {command!r}"
        if Path(str(command[0])).name == "git":
            return cls.real(command, *arguments, **options)
        raise Begun("the work would begin")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to start commands in, with empty caches; nothing can be fetched or started."""
    here = tmp_path / "in" / "here"
    (here / "RESULTS" / "raw").mkdir(parents=True)
    (here / "TEXTS").write_text("a text\n")
    monkeypatch.chdir(here)
    for name in ("CHECKPOINTS", "CACHE"):
        monkeypatch.setenv(f"LLM2VEC_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("LLM2VEC_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("llm2vec.paths.results_dir", lambda: tmp_path / "results")
    monkeypatch.setattr("llm2vec.paths.build_dir", lambda: tmp_path / "build")
    monkeypatch.setattr(report, "TABLES", dict.fromkeys(report.APART))  # a page soon made
    monkeypatch.setattr(report, "make_table", lambda _, results: tables_checks.departures(results))
    monkeypatch.setattr(subprocess, "Popen", NoProcess)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail(f"a shell string: {command!r}"))
    yield here
    assert not list(tmp_path.rglob("pwned")) and not (ROOT / "pwned").exists()


def run(name: str, arguments: list[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command in this process."""
    program, *part = name.split()
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [program, *part, *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            console.run(PROGRAMS[program])
    except SystemExit as stop:
        return int(stop.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue(), err.getvalue()


def arguments_with(name: str, tried: str, value: str) -> list[str]:
    """Every required option, and the folders, with a valid value, but for the one that is tried."""
    own = BESIDE.get(name, {})
    options, positional = [], []
    for parameter in COMMANDS[name].params:
        known = value if parameter.name == tried else (VALID | own).get(parameter.name)
        wanted = parameter.required or parameter.name in own or parameter.name in FREE
        if parameter.name != tried and (known is None or not wanted):
            continue
        if parameter.param_type_name == "argument":
            positional.append(known)
        else:
            options.append(parameter.opts[0] if known is True else f"{parameter.opts[0]}={known}")
    return [*options, "--", *positional]


@pytest.mark.parametrize(("name", "option"), CASES, ids=lambda text: text)
def test_hostile_values_end_in_one_line_and_do_no_harm(name: str, option: str, place: Path) -> None:
    before = set(place.parent.rglob("*"))
    for value in HOSTILE:
        code, out, err = run(name, arguments_with(name, option, value))
        shown = f"{option}={value[:20]!r}: {out[-500:]}{err[-2000:]}"
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in err, shown
        assert code in (0, 1, 2) and len(lines) == (code == 2), shown
        if len(value) > console.LONGEST:
            assert code == 2 and "characters; at most" in lines[0], shown
        if code == 2:
            assert err.splitlines()[-1] == lines[0] and len(lines[0]) < 2000, shown
        if option not in FREE and not (value == "/" and (place / value).exists()):
            assert code == 2, shown
            assert "would begin" not in err, f"told before the work: {shown}"
    if option not in FREE:
        assert set(place.parent.rglob("*")) == before, "files were left"


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_options_are_refused_in_one_line(name: str) -> None:
    code, _, err = run(name, ["--no-such-option"])
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_an_error_that_is_not_of_the_users_path_keeps_its_trace(place: Path) -> None:
    def main(results: Path = Path()) -> None:
        open(results / "none" if results.name == "mine" else "/no/such/file").close()

    PROGRAMS["made up"] = main
    try:
        for value, refused in (("mine", True), ("other", False)):
            sys.argv = ["x", f"--results={value}"]
            with pytest.raises(SystemExit if refused else FileNotFoundError):
                console.run(main)
    finally:
        del PROGRAMS["made up"]
