"""The commands of the documentation: found, parsed, and checked without loading torch.

python tests/docs_help.py experiments/01_train_mntp.py --model mistral-7b    # valid? then exit 0
"""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import typer

from llm2vec import cli, console

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
# In running text: a program, and something that it is given.
INLINE = re.compile(
    r"`((?:[A-Z]+=\S+ )*(?:make|llm2vec \w+|mteb|pip|(?:\.venv/bin/)?python|source) [^`]+)`"
)
SHELL = ("bash", "console", "")
HARMLESS = {"git", "cd", "mkdir", "source", "export", "hf", "printf", "pip", "mteb"}
OWN = ("llm2vec", "analysis", "benchmarks")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind in languages]


def commands(block: str) -> Iterator[list[str]]:
    """Commands of a shell block as words, comments and continuations taken care of."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


def inline(text: str) -> Iterator[list[str]]:
    """Commands in running text."""
    for code in INLINE.findall(text):
        yield from commands(" ".join(code.split()))


def all_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command in blocks and in running text."""
    found = []
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        for words in [*(w for b in blocks(page, *SHELL) for w in commands(b)), *inline(text)]:
            found.append((page.name, words))
    return found


# --------------------------------------------------------------------------- parsed
def parse(application: typer.Typer, arguments: list[str]) -> None:
    """Let the command line parser see the arguments, and nothing else happen."""
    command = typer.main.get_command(application)
    with command.make_context("command", list(arguments), resilient_parsing=False) as context:
        if hasattr(command, "resolve_command"):
            rest = [*context._protected_args, *context.args]
            name, inner, rest = command.resolve_command(context, rest)
            inner.make_context(name, rest, parent=context)


def script(path: str) -> ModuleType:
    """A script or module of the repository, loaded anew if it is a file."""
    if not path.endswith(".py"):
        spec = importlib.util.find_spec(path)
        assert spec is not None, f"no module {path}"
        package = spec.submodule_search_locations is not None
        return importlib.import_module(f"{path}.__main__" if package else path)
    assert (ROOT / path).is_file(), path
    name = "docs_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_python(arguments: list[str]) -> tuple[str, list[str]]:
    """Script or module and its arguments, whatever launches it."""
    at = next(i for i, a in enumerate(arguments) if a.endswith(".py") or a == "-m")
    at += arguments[at] == "-m"
    return arguments[at], arguments[at + 1 :]


def check(words: list[str]) -> None:
    """One command of the documentation: does what it names exist, are its options valid?"""
    while "=" in words[0]:  # an environment variable for this command
        words = words[1:]
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program == "llm2vec":
        return parse(cli.app, arguments)
    if program in ("python", "torchrun", "accelerate"):
        name, rest = of_python(arguments)
        if name.startswith("tests/"):
            options = [word for word in rest if word.startswith("--")]
            assert all(f'"{option}"' in (ROOT / name).read_text() for option in options)
            return None
        if not name.endswith(".py") and name.split(".")[0] not in OWN:
            assert importlib.util.find_spec(name), f"no module {name}"
            return None
        main = getattr(script(name), "main", None)
        assert main or not rest, f"{name} takes no options"
        if "--help" in rest:
            rest.remove("--help")
        return parse(console._as_app(main), rest) if main else None
    if program == "make":
        done = subprocess.run(
            ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return None
    assert program in HARMLESS, f"{program}: no test knows how to check it"
    return None


if __name__ == "__main__":  # as the interpreter of a Makefile
    check(["python", *sys.argv[1:]])
