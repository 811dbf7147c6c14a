"""Every code block of the documentation: run against tiny stand-ins, or at least parsed.

Run: the Python and `llm2vec` lines of quickstart.md and migrating.md, the check of faq.md, and the
entries of extending.md, with the tiny random decoder in the place of every model. Parsed, so that
a renamed option or target is found: all other commands of README.md and docs/*.md (training, GPUs,
`make` targets, experiments), since they take hours, a network or a GPU.
"""

import csv
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import typer
from conftest import ROOT
from test_cli import llm2vec

from llm2vec import LLM2Vec, cli, console, folders, loading, registry
from llm2vec.encoder import load_encoder

PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
HARMLESS = {"git", "cd", "source", "export", "hf", "printf", "pip"}
FAST = ["--mntp-steps=1", "--simcse-steps=1", "--batch-size=2", "--block-size=8", "--dtype=float32",
        "--no-scores", "--device=cpu"]  # fmt: skip


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind in languages]


def commands(block: str) -> Iterator[list[str]]:
    """Commands of a shell block as words, comments and continuations taken care of."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


def all_commands() -> list[tuple[str, list[str]]]:
    return [
        (page.name, words)
        for page in PAGES
        for block in blocks(page, "bash", "console", "")
        for words in commands(block)
    ]


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
    """A script or module of the repository."""
    if not path.endswith(".py"):
        return importlib.import_module(path)
    assert (ROOT / path).is_file(), path
    name = "docs_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(words: list[str]) -> None:
    """One command of the documentation: does what it names exist, are its options valid?"""
    while "=" in words[0]:  # an environment variable for this command
        words = words[1:]
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program == "llm2vec":
        return parse(cli.app, arguments)
    if program in ("python", "torchrun", "accelerate"):
        at = next(i for i, a in enumerate(arguments) if a.endswith(".py") or a == "-m")
        at += arguments[at] == "-m"
        main = script(arguments[at]).main
        return parse(console._as_app(main), arguments[at + 1 :])
    if program == "make":
        done = subprocess.run(
            ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return None
    assert program in HARMLESS, f"{program}: no test knows how to check it"
    return None


@pytest.mark.parametrize(
    ("page", "words"), all_commands(), ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60]
)
def test_commands_name_what_exists(page: str, words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize(
    "words",
    ["llm2vec encode x --modle y", "python experiments/01_train_mntp.py --stpes 3", "rm -r x",
     "python -m llm2vec.nothing", "make no-such-target"],
)  # fmt: skip
def test_the_check_finds_what_is_wrong(words: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - whichever way it comes to light
        check(shlex.split(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_sections_that_are_linked_to_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.M)
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors, page.name


def test_results_show_every_figure_that_was_drawn() -> None:
    shown = set(LINK.findall((ROOT / "results" / "README.md").read_text()))
    drawn = {f"figures/{path.name}" for path in (ROOT / "results" / "figures").glob("*.png")}
    assert drawn <= shown


def test_modules_and_files_that_are_named_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:llm2vec|experiments|tests|docs)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


# --------------------------------------------------------------------------- run
@pytest.fixture
def stand_ins(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Every model is the tiny decoder; the working directory is empty."""
    original = LLM2Vec.from_pretrained.__func__

    def tiny(cls, name, *arguments, **options):
        for option in ("device_map", "peft_model_name_or_path", "device"):
            options.pop(option, None)
        name = name if Path(name).exists() else tiny_llama_dir
        return original(cls, name, *arguments, device="cpu", **options)

    monkeypatch.setattr(LLM2Vec, "from_pretrained", classmethod(tiny))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(tmp_path)
    return {"smollm2-135m": str(tiny_llama_dir), "./my-decoder": str(tiny_llama_dir)}


def run_page(page: str, names: dict[str, str]) -> list[str]:
    """Python blocks, `llm2vec` and `printf` lines of a page in their order; what was run."""
    done = []
    for kind, block in BLOCK.findall((ROOT / "docs" / page).read_text()):
        if kind == "python":
            exec(compile(block, page, "exec"), {})
            done.append("python")
        for line in block.splitlines() if kind == "bash" else ():
            if line.startswith("printf"):
                subprocess.run(["bash", "-c", line], check=True)
            words = shlex.split(line, comments=True)
            if words[:1] == ["llm2vec"]:
                extra = FAST if words[1] == "convert" else ["--device", "cpu"]
                arguments = [names.get(word, word) for word in words[1:]]
                assert llm2vec(*arguments, *(extra if words[1] != "models" else ())) == 0, line
                done.append(f"llm2vec {words[1]}")
    return done


def test_the_quick_start_runs(
    stand_ins: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    done = run_page("quickstart.md", stand_ins)
    assert done == [
        "python", *["llm2vec encode"] * 3, "llm2vec export", "python", "llm2vec convert",
    ]  # fmt: skip
    made = {path.name for path in tmp_path.iterdir()}
    assert made >= {"vectors.npy", "vectors.parquet", "my-encoder", "my-own-encoder"}
    assert '{"embedding": [' in capsys.readouterr().out


def test_the_example_of_the_published_package_runs(stand_ins: dict[str, str]) -> None:
    assert run_page("migrating.md", stand_ins) == ["python"]


def test_the_check_of_the_questions_runs(stand_ins: dict[str, str]) -> None:
    (block,) = blocks(ROOT / "docs" / "faq.md", "python")
    exec(compile(block, "faq.md", "exec"), {})


def entries() -> list[object]:
    found = []
    for block in blocks(ROOT / "docs" / "extending.md", "python"):
        names: dict[str, object] = {}
        exec(compile(block, "extending.md", "exec"), names)
        found.append(names["entry"])
    return found


def test_one_entry_adds_a_model_and_another_a_variant(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model, variant = entries()
    models = registry.MODELS | {
        model.name: replace(model, hub_id=str(tiny_llama_dir), revision=registry.UNPINNED)
    }
    for module in (registry, loading, folders, cli):
        monkeypatch.setattr(module, "MODELS", models)
    for module in (registry, cli):
        monkeypatch.setattr(module, "VARIANTS", registry.VARIANTS | {variant.name: variant})
    texts = ["The quick brown fox", "dog"]
    bi = load_encoder("my-model", "bi", device="cpu").encode(texts)
    echo = load_encoder("my-model", "bi-echo", device="cpu").encode(texts)
    assert bi.shape == (2, 32) and (bi - echo).abs().max() > 0.01
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert llm2vec("models") == 0
    assert "my-model" in capsys.readouterr().out


def test_one_line_adds_a_task() -> None:
    (block,) = blocks(ROOT / "docs" / "extending.md", "csv")
    header, line = block.splitlines()
    assert header == (registry.RESOURCES / "mteb_tasks.csv").read_text().splitlines()[0]
    task = registry._task(next(csv.DictReader([header, line])))
    assert (task.name, task.type, task.split) == ("MyTask", "STS", "test") and task.symmetric
