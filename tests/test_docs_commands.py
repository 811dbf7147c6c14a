"""Every command of README.md and docs/*.md, executed as far as it goes without GPU, hub or hours.

`WAYS` says how each one is executed and, where it is not as it stands, why. A command without an
entry fails, and so does an entry whose command is gone. What runs as a whole runs in a copy of the
repository, so that nothing here is changed; those tests are slow.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from docs_help import all_commands, blocks, check, of_python, script
from test_cli import llm2vec

from llm2vec import cli, console, mirror

REAL = "as written"
DRY = "with DRY=1"
PARSED = "by the real make and shell, up to each Python program, whose options are parsed"
UP_TO = "as written, up to the function that would take the time or the machine"
PAGE = "in test_docs.py, with its page, on a tiny decoder"
MODEL = "as written, on SmolLM2-135M"
NAMED = "not executed: what it names exists"


@dataclass(frozen=True)
class Way:
    """How a command is executed; ``says`` is in its output, ``stop`` where UP_TO ends."""

    how: str
    why: str = ""
    says: str = ""
    stop: str = ""
    status: tuple[int, ...] = (0,)


def dry(why: str, says: str) -> Way:
    return Way(DRY, why, says)


def doctor() -> Way:
    return Way(REAL, says="ready", status=(0, 2))  # 2: something is missing here, and it says so


HOURS, GPU, ITSELF = "takes hours", "needs a GPU", "the tests would start themselves"
HUB = "needs a model hub"
SHELL = "the reader's shell, no program of this repository"
EVALUATE = "llm2vec.evaluation.execute"
TRAIN = "llm2vec.mntp.train_mntp"
SUBSET = "experiments/04_mteb_subset.py"
WAYS: dict[str, Way] = {
    # README.md
    "make reproduce": dry("takes half an hour", "offline.smollm2-135m.bi-mntp-simcse"),
    "make test": Way(PARSED, ITSELF),
    "make env": Way(NAMED, "builds the environment that the tests run in; they are the proof"),
    "make reproduce DRY=1": Way(REAL, says="offline.minilm-l6.encoder"),
    "export HF_TOKEN=...": Way(NAMED, SHELL),
    "make doctor": doctor(),
    "make doctor MODEL=s-llama-1.3b SUITE=subset": doctor(),
    "make reproduce-mteb": dry("takes half an hour", "offline.smollm2-135m.bi-mntp-simcse"),
    "make reproduce-mteb MODEL=s-llama-1.3b SUITE=subset PROFILE=gpu DRY=1": Way(
        REAL, says="train.s-llama-1.3b.mntp-simcse"
    ),
    f".venv/bin/python {SUBSET} --model mistral-7b --variant bi-mntp-simcse --adapters published":
        Way(UP_TO, GPU, stop=EVALUATE),
    ".venv/bin/python experiments/05_mteb_full.py --model mistral-7b --variant bi-mntp-simcse "
    "--adapters published": Way(UP_TO, GPU, stop=EVALUATE),
    "make claims": Way(REAL, says="words-bi-llama"),
    "make tables": Way(REAL, says=" 0 of "),
    "make check": Way(REAL, says="generated files are up to date"),
    "source .venv/bin/activate": Way(NAMED, SHELL),
    "llm2vec encode texts.txt --model smollm2-135m --variant bi-mntp-simcse --out vectors.npy":
        Way(MODEL),
    "llm2vec export --model smollm2-135m --variant bi-mntp-simcse --output smollm2-encoder":
        Way(MODEL),
    "llm2vec convert --model ./my-decoder --data my-texts.txt --output my-encoder": Way(PAGE),
    "pip install -e .[analysis]": Way(NAMED, "needs a package index; the pins are tested"),
    # architectures.md, extending.md
    "PYTHONPATH=.:tests .venv/bin/python tests/test_any_decoder.py":
        Way(NAMED, "writes what the tests of the same file compare"),
    "make reproduce-mteb MODEL=my-model": Way(PARSED, "the reader's model"),
    # faq.md
    "llm2vec encode texts.txt --model smollm2-135m --variant bi --out vectors.npy "
    "--device cuda:all": Way(UP_TO, GPU, stop="llm2vec.parallel.split_devices"),
    "torchrun --nproc-per-node 8 experiments/01_train_mntp.py --model mistral-7b":
        Way(UP_TO, GPU, stop=TRAIN),
    "accelerate launch --config_file experiments/accelerate/fsdp.yaml "
    "experiments/01_train_mntp.py --model llama-3-8b": Way(UP_TO, GPU, stop=TRAIN),
    f"python {SUBSET} --model mistral-7b --variant bi --suite subset --device cuda:0,cuda:1":
        Way(UP_TO, GPU, stop=EVALUATE),
    "python experiments/03_word_probing.py --model smollm2-135m --variant uni --task ner "
    "--data mini --results build/results": Way(REAL),
    "hf auth login": Way(NAMED, HUB),
    "llm2vec models": Way(REAL, says="HuggingFaceTB/SmolLM2-135M-Instruct"),
    "make mirror SUITE=subset DEST=mirror MODEL=s-llama-1.3b": dry(HUB, "LLM2VEC_DATA="),
    # harness.md, numbers.md, offline-suite.md, performance.md
    "export LLM2VEC_DATA=/path/to/mirror": Way(NAMED, SHELL),
    f".venv/bin/python {SUBSET} --model minilm-l6 --variant encoder --suite exact8":
        Way(UP_TO, f"{HOURS} and data", stop=EVALUATE),
    ".venv/bin/python benchmarks/row_order.py":
        Way(UP_TO, "takes minutes and data", stop="llm2vec.data.mirror_folder"),
    "make test-slow": Way(PARSED, ITSELF),
    ".venv/bin/python -m analysis.build --show smollm2": Way(REAL, says="| SmolLM2-135M |"),
    ".venv/bin/python -m analysis.build --check": Way(REAL, says="are up to date"),
    f".venv/bin/python {SUBSET} --model smollm2-135m --variant bi --suite offline":
        Way(REAL, says="all 15 tasks done before"),
    "make bench": Way(PARSED, HOURS),
    "make bench-peers": Way(PARSED, "installs another version of the libraries"),
    "python -m benchmarks.encode --help": Way(REAL, says="--output"),
    "python -m benchmarks.breakdown": Way(UP_TO, "takes minutes", stop="benchmarks.texts.counter"),
    "python -m benchmarks.gpu --shape mistral-7b": Way(UP_TO, GPU, stop="benchmarks.gpu.device_of"),
    "python experiments/01_train_mntp.py --model mistral-7b --compile --max-tokens 2048 "
    "--no-checkpointing": Way(UP_TO, GPU, stop=TRAIN),
    "python -m benchmarks.choices": Way(UP_TO, "takes minutes", stop="benchmarks.texts.counter"),
    f"python {SUBSET} --model smollm2-135m --suite offline --variant bi --dtype bfloat16":
        Way(UP_TO, "takes minutes", stop=EVALUATE),
    f"python {SUBSET} --model smollm2-135m --suite offline --variant bi --dtype bfloat16-mixed":
        Way(UP_TO, "takes minutes", stop=EVALUATE),
    # quickstart.md
    "git clone <address of this repository> llm2vec": Way(NAMED, SHELL),
    "cd llm2vec": Way(NAMED, SHELL),
    "mkdir -p build/start": Way(NAMED, SHELL),
    "cd build/start": Way(NAMED, SHELL),
    r"printf Foxes eat mice.\nThe train was late.\n > texts.txt": Way(PAGE),
    "llm2vec encode texts.txt --model smollm2-135m --variant bi --out vectors.npy": Way(PAGE),
    "llm2vec encode texts.txt --model smollm2-135m --variant uni --pooling eos "
    "--out vectors.parquet": Way(PAGE),
    r'printf {"text": "Foxes eat mice."}\n > corpus.jsonl': Way(PAGE),
    "llm2vec encode corpus.jsonl --model smollm2-135m --variant bi "
    "--instruction Retrieve passages:": Way(PAGE),
    "llm2vec export --model smollm2-135m --variant bi --output my-encoder": Way(PAGE),
    "llm2vec convert --model ./my-decoder --data my-texts.txt --output my-own-encoder": Way(PAGE),
    "mteb run --model": Way(NAMED, f"{HUB}; test_mteb_name.py lets mteb load by name from one"),
    # reliability.md, reproduce.md, slurm-test.md
    "python tests/reliability.py --kills 55 --seed 1":
        Way(NAMED, f"{HOURS}; test_reliability.py runs a campaign of six"),
    "make test-slurm": Way(PARSED, "needs a Slurm cluster"),
    "make doctor MODEL=smollm2-135m SUITE=short6": doctor(),
    "make reproduce-mteb MODEL=smollm2-135m SUITE=short6": Way(REAL, says="Records, one JSON file"),
    "make reproduce-words MODEL=smollm2-135m": Way(REAL, says="Records, one JSON file"),
    "make reproduce-analyses MODEL=smollm2-135m": Way(REAL, says="Records, one JSON file"),
    "make train MODEL=smollm2-135m": Way(PARSED, HOURS),
    "make doctor MODEL=mistral-7b SUITE=subset ADAPTERS=published": doctor(),
    "make reproduce-mteb MODEL=mistral-7b SUITE=subset ADAPTERS=published PROFILE=gpu":
        dry(GPU, "subset.mistral-7b.bi-mntp-simcse"),
    "make reproduce-all MODEL=s-llama-1.3b PROFILE=gpu": dry(GPU, "words.s-llama-1.3b.bi-mntp"),
    "make reproduce-all MODEL=all PROFILE=slurm JOBS=20 DRY=1":
        Way(REAL, says="full.llama-3-8b.bi-mntp-simcse"),
    "make reproduce-all MODEL=all PROFILE=slurm JOBS=20":
        dry("needs a Slurm cluster", "full.llama-3-8b.bi-mntp-simcse"),
    "make mirror SUITE=subset DEST=mirror MODEL=mistral-7b": dry(HUB, "LLM2VEC_DATA="),
    "export LLM2VEC_DATA=$PWD/mirror HF_HUB_CACHE=$PWD/mirror/hub HF_HUB_OFFLINE=1":
        Way(NAMED, SHELL),
    "make import-results FROM=elsewhere/results DRY=1":
        Way(REAL, says="1 were here already"),
    f".venv/bin/python {SUBSET} --model smollm2-135m --variant bi --task STS17":
        Way(REAL, says="all 1 tasks done before"),
    "make report": Way(REAL, says="build/report.html"),
    "make verify-records": Way(PARSED, "takes minutes; test_verify.py measures one again"),
    "make verify-records NUMBER=20 ONLY=smollm2-135m/bi-mntp SEED=7": Way(PARSED, HOURS),
}  # fmt: skip


def of(how: str) -> list[str]:
    return [command for command, way in WAYS.items() if way.how == how]


def words_of(command: str) -> list[str]:
    """The words as the documentation has them, quotes taken care of."""
    return next(words for _, words in all_commands() if " ".join(words) == command)


def test_every_command_has_its_way_and_a_reason_if_it_is_not_run() -> None:
    there = {" ".join(words) for _, words in all_commands()}
    assert there - set(WAYS) == set(), "say in WAYS how these are executed"
    assert set(WAYS) - there == set(), "these are in no page any more"
    unexplained = {c for c, way in WAYS.items() if way.how not in (REAL, PAGE, MODEL)
                   and not way.why}  # fmt: skip
    assert unexplained == set()


def test_the_variables_of_a_mirror_are_those_that_making_one_prints() -> None:
    printed = " ".join(mirror._usage(Path("/there"), ("datasets", mirror.HUB)).split())
    (shown,) = (c for c in WAYS if c.startswith("export LLM2VEC_DATA=$PWD"))
    ours = shown.replace("$PWD/mirror", "/there").split()[1:]
    assert set(ours) == {word for word in printed.split() if "=" in word}


# --------------------------------------------------------------------------- in a copy
@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a fresh clone has it, and the results of another machine."""
    folder = tmp_path_factory.mktemp("copy") / "llm2vec"
    left = (".git", ".venv", "build", "checkpoints", ".*_cache", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*left))
    record = "raw/layer_similarity/smollm2-135m/bi/none/wikipedia.json"
    (folder / "elsewhere/results" / record).parent.mkdir(parents=True)
    shutil.copy(folder / "results" / record, folder / "elsewhere/results" / record)
    return folder


@pytest.fixture(scope="session")
def execute(copy: Path) -> Callable[[tuple[str, ...]], subprocess.CompletedProcess[str]]:
    """Run a program in the copy, once for the same words."""
    done: dict[tuple[str, ...], subprocess.CompletedProcess[str]] = {}
    env = os.environ | {
        "PYTHONPATH": str(copy), "LLM2VEC_COMMIT": "0" * 40, "HF_HUB_OFFLINE": "1",
        "LLM2VEC_CHECKPOINTS": "", "LLM2VEC_DATA": "",
    }  # fmt: skip

    def run(words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        if words not in done:
            done[words] = subprocess.run(
                words, cwd=copy, env=env, capture_output=True, text=True, check=False, timeout=3600
            )
        return done[words]

    return run


def program(words: list[str], interpreter: str = sys.executable) -> tuple[str, ...]:
    """The command with this interpreter in the place of the environment's."""
    first, *rest = words
    if first == "make":
        return ("make", "-o", "env", f"RUN={interpreter}", *rest)
    if first == "llm2vec":
        return (sys.executable, "-m", "llm2vec.cli", *rest)
    assert first.removeprefix(".venv/bin/") == "python"
    return (sys.executable, *rest)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*of(REAL), *of(DRY)])
def test_commands_run(execute, command: str) -> None:
    way, words = WAYS[command], words_of(command)
    done = execute(program([*words, "DRY=1"] if way.how == DRY else words))
    assert done.returncode in way.status, done.stdout + done.stderr
    assert way.says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", of(PARSED))
def test_what_make_would_start_is_valid(execute, command: str) -> None:
    done = execute(program(words_of(command), f"{sys.executable} {ROOT / 'tests/docs_help.py'}"))
    assert done.returncode == 0, done.stdout + done.stderr


# --------------------------------------------------------------------------- in this process
class Reached(Exception):
    """The function before which a command stops."""


def launched(words: list[str]) -> list[str]:
    """Script and arguments, after the launcher's own parser has read its part."""
    first, *rest = words
    if first == "torchrun":
        from torch.distributed.run import parse_args

        chosen = parse_args(rest)
        assert chosen.nproc_per_node == "8"
    elif first == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        chosen = launch_command_parser().parse_args(rest[1:])
        settings = yaml.safe_load((ROOT / chosen.config_file).read_text())
        assert settings["distributed_type"] == "FSDP"
    else:
        name, arguments = of_python(rest)
        return [name, *arguments]
    return [chosen.training_script, *chosen.training_script_args]


@pytest.mark.parametrize("command", of(UP_TO))
def test_commands_run_up_to_what_takes_the_machine(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path))
    words = words_of(command)
    place, _, name = WAYS[command].stop.rpartition(".")
    if words[0] == "llm2vec":
        (tmp_path / "texts.txt").write_text("Foxes eat mice.\n")
        main, arguments = cli.app, words[1:]
    else:
        path, *arguments = launched(words)
        module = script(path)
        main = module.main
        if hasattr(module, name):  # imported by name: there, or others would keep the stand-in
            place = module
    if isinstance(place, str):
        place = importlib.import_module(place)
    monkeypatch.setattr(place, name, stop)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(Reached):
        console.run(main)


@pytest.mark.slow
def test_the_commands_of_the_readme_run_on_smollm2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from llm2vec.export import cosines

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    (tmp_path / "texts.txt").write_text("Foxes eat mice.\nThe train was late.\n")
    for command in of(MODEL):
        assert llm2vec(*shlex.split(command)[1:]) == 0
    vectors = np.load("vectors.npy")
    theirs = SentenceTransformer("smollm2-encoder", device="cpu").encode(
        ["Foxes eat mice.", "The train was late."]
    )
    assert vectors.shape == (2, 576) and cosines(vectors, theirs).min() > 0.9999
    (block,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["vectors"].shape == (2, 576)


# --------------------------------------------------------------------------- the rest
@pytest.mark.parametrize("command", WAYS)
def test_commands_name_what_exists(command: str) -> None:
    check(words_of(command))


@pytest.mark.parametrize(
    "words",
    ["llm2vec encode x --modle y", "python experiments/01_train_mntp.py --stpes 3", "rm -r x",
     "python -m llm2vec.nothing", "make no-such-target", "python tests/reliability.py --kill 3",
     "python benchmarks/row_order.py --modle x"],
)  # fmt: skip
def test_the_check_finds_what_is_wrong(words: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - whichever way it comes to light
        check(shlex.split(words))
