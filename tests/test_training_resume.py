"""What a run goes on from: kills, half-written files, more steps, other micro-batches."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_help import HANGS, adapter, lines, run, snapshot, start_process, write_texts

from llm2vec import training
from llm2vec.errors import SettingError
from llm2vec.registry import LoRA
from llm2vec.runs import RunFolder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_texts(tmp_path)


# --------------------------------------------------------------------------- going on
@pytest.mark.parametrize("stage", ["mntp", "bi-simcse"])
def test_more_steps_go_on_from_a_finished_run(
    stage: str, tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    whole = run(stage, tiny_llama_dir, text, tmp_path / "whole", steps=5)
    parts = run(stage, tiny_llama_dir, text, tmp_path / "parts", steps=3)
    first = lines(parts)
    assert adapter(parts) != adapter(whole)
    run(stage, tiny_llama_dir, text, tmp_path / "parts", steps=5)
    assert adapter(parts) == adapter(whole)
    assert lines(parts)[:3] == first  # the very same lines: not run again
    assert [x["step"] for x in lines(parts)] == [1, 2, 3, 4, 5]


def test_a_run_may_go_on_in_other_micro_batches(
    tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    """On another machine, say: the batch of a step stays what it was."""
    changes = {"lora": LoRA(r=4, alpha=8, dropout=0.0)}
    whole = run("mntp", tiny_llama_dir, text, tmp_path / "whole", steps=5, **changes)
    out = tmp_path / "out"
    run("mntp", tiny_llama_dir, text, out, {"max_tokens": 16}, steps=2, **changes)
    run("mntp", tiny_llama_dir, text, out, {"max_tokens": 64}, steps=5, **changes)
    for key in ("loss", "grad_norm", "tokens"):
        assert [x[key] for x in lines(out)] == pytest.approx([x[key] for x in lines(whole)], 1e-3)


def test_finished_run_is_left_alone(tiny_llama_dir: Path, text: Path, tmp_path: Path) -> None:
    out = run("mntp", tiny_llama_dir, text, tmp_path / "out")
    before = snapshot(out)
    run("mntp", tiny_llama_dir, text, tmp_path / "out")
    assert snapshot(out) == before


SLOW_STEPS = """
from llm2vec import mntp, simcse
import time
for kind in (mntp.MNTPTrainer, simcse.SimCSETrainer):
    def slow(self, *args, step=kind.training_step, **kwargs):
        time.sleep(0.15)
        return step(self, *args, **kwargs)
    kind.training_step = slow
run(A["stage"], Path(A["model"]), Path(A["text"]), Path(A["out"]), steps=14)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["mntp", "bi-simcse"])
def test_killed_run_goes_on_and_ends_with_the_same_bits(
    stage: str,
    tiny_llama_dir: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)  # as the process that is killed
    whole = run(stage, tiny_llama_dir, text, tmp_path / "whole", steps=14)
    out = tmp_path / "killed"
    arguments = {"stage": stage, "model": str(tiny_llama_dir), "text": str(text), "out": str(out)}
    process = start_process(SLOW_STEPS, arguments)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + HANGS
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 7:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (out / "adapter_model.safetensors").exists()
    saved = RunFolder(out, {}).last_checkpoint()
    assert saved is not None and 6 <= int(saved.name.partition("-")[2]) < 14

    counted: list[int] = []
    from llm2vec.training import StageTrainer

    log = StageTrainer.log

    def counting(self, logs, start_time=None):
        counted.append(self.state.global_step)
        log(self, logs, start_time)

    monkeypatch.setattr(StageTrainer, "log", counting)
    run(stage, tiny_llama_dir, text, out, steps=14)
    assert sorted(set(counted)) == list(range(int(saved.name.partition("-")[2]) + 1, 15))
    assert adapter(out) == adapter(whole)
    assert [x["loss"] for x in lines(out)] == [x["loss"] for x in lines(whole)]


def test_half_written_files_are_no_obstacle(
    tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    whole = run("mntp", tiny_llama_dir, text, tmp_path / "whole", steps=6)
    out = run("mntp", tiny_llama_dir, text, tmp_path / "out", steps=4)
    (out / "adapter_model.safetensors").unlink()
    (out / "provenance.json").unlink()
    partial = out / "run" / ".partial" / "checkpoint-6"
    partial.mkdir(parents=True)
    (partial / "lora.safetensors").write_bytes(b"half")
    with open(out / "metrics.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"step": 5, "lo')
    run("mntp", tiny_llama_dir, text, out, steps=6)
    assert adapter(out) == adapter(whole)
    assert [x["step"] for x in lines(out)] == [1, 2, 3, 4, 5, 6]


def test_the_same_data_by_another_revision_are_the_same_run(tmp_path: Path) -> None:
    """Which commit 'unpinned' means is not known where the hub does not answer."""

    def settings(revision: str, **changes: str) -> dict[str, Any]:
        source = {"id": "some/data", "revision": revision, "source": "hub", "status": "exact"}
        return {"stage": "mntp", "data": [source | changes], "data_hash": "0a"}

    RunFolder(tmp_path, settings("a" * 40)).check(2)
    RunFolder(tmp_path, settings("a" * 40)).start(0)
    assert RunFolder(tmp_path, settings("unpinned")).check(2) is False
    for other in (
        settings("a" * 40, id="other/data"),
        settings("unpinned") | {"data_hash": "0b"},
        settings("unpinned") | {"data_hash": None},
        settings("unpinned") | {"stage": "simcse"},
    ):
        with pytest.raises(SettingError, match="holds another run"):
            RunFolder(tmp_path, other).check(2)


def stopped(moment: str, *arguments: object, **changes: object) -> None:
    """A run that ends where it would call this; an exception stands in for the kill."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"llm2vec.{moment}", stop)
        with pytest.raises(KeyboardInterrupt):
            run("mntp", *arguments, **changes)


# --------------------------------------------------------------------------- who trained it
@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``at(commit)``: from now on the code is of that commit, and the next second has come."""
    capture, starts = training.capture_provenance, []

    def use(commit: str) -> None:
        def captured(*arguments: str) -> Any:
            starts.append(f"2026-01-01T00:00:{len(starts):02}+00:00")
            return replace(capture(*arguments), commit=commit, dirty=False, started=starts[-1])

        monkeypatch.setattr(training, "capture_provenance", captured)

    return use


def origin(folder: Path) -> tuple[str, str, list[tuple[int, str]]]:
    """First commit and start of an adapter's note, and (step, commit) of those that went on."""
    note = json.loads((folder / "provenance.json").read_text())
    first = note["provenance"]
    later = [(start["step"], start["commit"]) for start in note.get("resumed", [])]
    return first["commit"], first["started"][-8:-6], later


def test_a_note_names_the_first_start_and_every_commit(
    tiny_llama_dir: Path, text: Path, tmp_path: Path, at: Callable[[str], None]
) -> None:
    arguments = (tiny_llama_dir, text, tmp_path / "out")
    at("a" * 40)
    assert origin(run("mntp", *arguments, steps=2)) == ("a" * 40, "00", [])
    out = run("mntp", *arguments, steps=4)
    assert origin(out) == ("a" * 40, "00", [])  # gone on by the same code
    at("b" * 40)
    stopped("training.get_peft_model_state_dict", *arguments, steps=6)
    run("mntp", *arguments, steps=6)
    later = [(2, "a" * 40), (4, "b" * 40), (6, "b" * 40)]
    assert origin(out) == ("a" * 40, "00", later)
    (out / "run" / "starts.json").unlink()  # as a version that kept no such file left it
    run("mntp", *arguments, steps=8)
    assert origin(out) == ("b" * 40, "04", [(6, "b" * 40)])


def test_a_start_of_which_nothing_is_left_is_not_named(
    tiny_llama_dir: Path, text: Path, tmp_path: Path, at: Callable[[str], None]
) -> None:
    """It was killed before its first checkpoint."""
    arguments = (tiny_llama_dir, text, tmp_path / "out")
    at("a" * 40)
    stopped("training.StageTrainer._save_checkpoint", *arguments, steps=4)
    at("b" * 40)
    assert origin(run("mntp", *arguments, steps=4)) == ("b" * 40, "01", [])
    at("c" * 40)
    stopped("training.StageTrainer._save_checkpoint", *arguments, steps=6)
    at("b" * 40)
    assert origin(run("mntp", *arguments, steps=6)) == ("b" * 40, "01", [])


@pytest.mark.parametrize("earlier", [0, 4], ids=["first adapter", "adapter of fewer steps"])
def test_run_killed_while_the_adapter_is_written_goes_on(
    earlier: int, tiny_llama_dir: Path, text: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "trained"  # all steps done, nothing of their adapter written
    if earlier:
        run("mntp", tiny_llama_dir, text, trained, steps=earlier)
    stopped("training.get_peft_model_state_dict", tiny_llama_dir, text, trained, steps=6)
    shutil.copytree(trained, tmp_path / "whole")
    whole = run("mntp", tiny_llama_dir, text, tmp_path / "whole", steps=6)
    steps = lines(whole)
    for moment in ("training._adapter_config", "runs.RunFolder.plot_loss"):
        out = tmp_path / moment
        shutil.copytree(trained, out)
        stopped(moment, tiny_llama_dir, text, out, steps=6)
        assert not (out / "provenance.json").exists()  # nobody takes it for a finished one
        if earlier:
            with pytest.raises(SettingError, match="already trained for 6 steps"):
                run("mntp", tiny_llama_dir, text, out, steps=earlier)
        run("mntp", tiny_llama_dir, text, out, steps=6)
        assert lines(out) == steps  # no step again
        assert adapter(out) == adapter(whole)
        assert json.loads((out / "provenance.json").read_text())["steps"] == 6
