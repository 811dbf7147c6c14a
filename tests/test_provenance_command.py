"""What a provenance says of the command, the versions and the machine."""

import json
import sys
from pathlib import Path

import pytest

from llm2vec import provenance
from llm2vec.provenance import capture_provenance


def command_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "orig_argv", list(arguments))
    return capture_provenance().command


def test_command_holds_no_absolute_path(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = command_of(
        monkeypatch,
        str(tmp_path / "venv" / "bin" / "python"),
        str(repo_root / "experiments" / "04_mteb_subset.py"),
        "--model",
        "smollm2-135m",
        "--results",
        str(tmp_path / "my results"),
        f"--results={tmp_path / 'here'}",
        f"--results={repo_root / 'build' / 'results'}",
        f"results={tmp_path / 'a=b'}",
        str(tmp_path / "a=b"),
    )
    assert command == (
        "python experiments/04_mteb_subset.py --model smollm2-135m --results 'my results' "
        "--results=here --results=build/results results=a=b a=b"
    )


def test_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_of(monkeypatch, "python", "-c", "print('a b')", "--x=a=b", "", "a;b")
    assert command == """python -c 'print('"'"'a b'"'"')' --x=a=b '' 'a;b'"""


def test_provenance_is_plain_json_and_names_versions() -> None:
    values = capture_provenance("cuda:0", "bfloat16", "sdpa").as_dict()
    assert json.loads(json.dumps(values)) == values
    assert (values["device"], values["dtype"]) == ("cuda:0", "bfloat16")
    assert values["attention_implementation"] == "sdpa"
    assert values["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(values["versions"]) == set(provenance.PACKAGES)
    assert values["versions"]["numpy"][0].isdigit()
    assert values["started"].endswith("+00:00")


def test_provenance_tells_processors_and_threads_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either moves the last bits of a score."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        values = capture_provenance()
    finally:
        torch.set_num_threads(before)
    assert values.threads == 3
    assert len(values.processor) > 2
    monkeypatch.delitem(sys.modules, "torch")
    assert capture_provenance().threads == 0


def test_an_absent_package_is_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
    assert capture_provenance().versions == {"no-such-package": "absent"}


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert capture_provenance("cuda:1").accelerator == "GPU of cuda:1"
    assert capture_provenance("cuda:0,cuda:1").accelerator == "GPU of cuda:0"
    assert capture_provenance("cpu").accelerator == ""
