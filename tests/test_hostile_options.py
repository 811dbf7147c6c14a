"""Names that mean harm, through every option of every experiment script: one line, no file.

What an option is, is read from the script, so a new one is tried as well.
"""

import contextlib
import io
import runpy
import sys
import typing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "experiments").glob("*.py"))
HOSTILE = ("../x", "x; touch pwned", "$(touch pwned)", "a\nb", "x" * 5000, "/", "--variant")
# Folders that a script makes: any path will do, so only what cannot be one is refused.
FOLDERS = {"results", "output", "scratch"}
VALID = {"model": "smollm2-135m", "variant": "uni", "goal": "offline", "group": "mntp-lr"}


def options(script: str) -> dict[str, type]:
    """Option or argument and type of each parameter of the script's main that takes a value."""
    main = runpy.run_path(str(ROOT / "experiments" / script))["main"]
    found = {}
    for name, hint in typing.get_type_hints(main).items():
        plain = typing.get_args(hint) or (hint,)
        if name != "return" and bool not in plain:
            found[name] = Path if Path in plain else str
    return found


def run(script: str, arguments: list[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a script in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [script, *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / "experiments" / script), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue(), err.getvalue()


def arguments_with(script: str, name: str, value: str) -> list[str]:
    """Every required option with a valid value, but for one."""
    asked = {key: VALID[key] for key in options(script) if key in VALID} | {name: value}
    if script.startswith("02"):
        asked.setdefault("variant", "uni-simcse")
        asked["variant"] = "uni-simcse" if name != "variant" else value
    if name == "suite" and script == "grid.py":
        asked["goal"] = "mteb"
    positional = [asked.pop("goal")] if "goal" in asked else []
    return [f"--{key.replace('_', '-')}={text}" for key, text in asked.items()] + [
        "--", *positional,
    ]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_hostile_values_end_in_one_line_and_leave_nothing(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CHECKPOINTS", "CACHE"):
        monkeypatch.setenv(f"LLM2VEC_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("llm2vec.paths.results_dir", lambda: tmp_path / "results")
    monkeypatch.setattr("llm2vec.paths.build_dir", lambda: tmp_path / "build")
    tried = 0
    for name, kind in options(script).items():
        for value in HOSTILE if name not in FOLDERS else ():
            if kind is Path and value == "/":
                continue  # a folder that is there, not a harmful name
            code, out, err = run(script, arguments_with(script, name, value))
            shown = f"{name}={value[:20]!r}: {out}{err}"
            assert code == 2, shown
            assert err.count("error: ") == 1 and "Traceback" not in err, shown
            last = err.splitlines()[-1]
            assert last.startswith("error: ") and len(last) < 2000, shown
            assert "Downloading" not in err, "a wrong name is told before anything is fetched"
            tried += 1
    assert tried >= len(HOSTILE)
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert left == set(), "files were left behind"
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_options_are_refused_in_one_line(script: str) -> None:
    code, _, err = run(script, ["--no-such-option"])
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
