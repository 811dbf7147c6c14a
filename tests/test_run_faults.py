"""A run that is killed, or that meets another: records are whole, work is kept, nothing hangs."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from synthetic_records import make_record
from tiny_mirror import PAIRS, StubEncoder, add_task, few_resamples

from llm2vec import vectors
from llm2vec.errors import RecordError
from llm2vec.evaluation import execute, plan
from llm2vec.registry import POOLINGS, get_task
from llm2vec.results import Key, iter_records, read_record, write_record

pytestmark = pytest.mark.filterwarnings("ignore:An input array is constant")
MODEL, TASK = "smollm2-135m", "STS17"
TEXTS = len({text for first, second, _ in PAIRS for text in (first, second)})
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    add_task(tmp_path / "mirror", get_task(TASK))
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llm2vec.mteb_tasks.bootstrap_interval", few_resamples)
    monkeypatch.setattr(vectors, "PART_CHARACTERS", 40)
    return tmp_path


class Killed(StubEncoder):
    """Its process is killed at one of its calls."""

    def __init__(self, at: int | None) -> None:
        super().__init__(MODEL, "uni")
        self.at = at

    def encode_poolings(self, *arguments: Any, **options: Any) -> Any:
        if self.at == len(self.calls):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_poolings(*arguments, **options)


def run_all(root: Path, encoder: StubEncoder) -> int:
    """The run of one task and three poolings with this encoder; texts that it encoded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm2vec.encoder.load_encoder", lambda *_, **__: encoder)
        execute(plan(MODEL, "uni", "subset", root / "results", task=TASK), device="cpu")
    return len(encoder.pairs)


def in_process(target: Any, *arguments: Any) -> Any:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


# --------------------------------------------------------------------------- killed
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_killed_task_goes_on_where_it_was(folders: Path, at: int) -> None:
    killed = in_process(run_all, folders, Killed(at))
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert list(iter_records(folders / "results")) == []
    parts = list((folders / "cache").rglob("keys.npy"))
    assert len(parts) == at
    encoder = StubEncoder(MODEL, "uni")
    encoded = run_all(folders, encoder)
    assert (encoded < TEXTS) == (at > 0)
    records = list(iter_records(folders / "results"))
    assert {r.pooling for r in records} == set(POOLINGS)
    # The cost of what the killed process had encoded is in the records as well.
    whole = sum(len(text.split()) for text in {t for a, b, _ in PAIRS for t in (a, b)})
    assert {r.cost["tokens"] for r in records} == {whole}
    assert not [p for p in (folders / "cache").rglob("*") if p.is_file()]


# --------------------------------------------------------------------------- two at once
def run_and_report(root: Path, results: Any) -> None:
    results.put(run_all(root, StubEncoder(MODEL, "uni")))


def test_two_runs_of_the_same_task_at_once_agree(folders: Path) -> None:
    results = FORK.Queue()
    processes = [in_process(run_and_report, folders, results) for _ in range(2)]
    encoded = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert all(0 <= count <= 3 * TEXTS for count in encoded)
    together = {r.pooling: r.score for r in iter_records(folders / "results")}
    alone = folders / "alone"
    run_all(alone, StubEncoder(MODEL, "uni"))
    assert together == {r.pooling: r.score for r in iter_records(alone / "results")}


def write_again_and_again(root: Path, score: float, stop: Any) -> None:
    while not stop.is_set():
        write_record(make_record("mteb_subset", MODEL, "uni", "mean", TASK, score), root)


def test_a_reader_sees_whole_records_while_two_write_them(folders: Path) -> None:
    root, stop = folders / "results", FORK.Event()
    file = write_record(make_record("mteb_subset", MODEL, "uni", "mean", TASK, 0.5), root)
    writers = [in_process(write_again_and_again, root, score, stop) for score in (0.25, 0.75)]
    try:
        seen = {read_record(file).score for _ in range(300)}
    finally:
        stop.set()
        for writer in writers:
            writer.join(30)
    assert seen <= {0.25, 0.5, 0.75}
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_record_written_by_hand_in_the_meantime_is_read_not_overwritten(folders: Path) -> None:
    """What is done is asked when the run begins; a damaged file is named, never replaced."""
    run_all(folders, StubEncoder(MODEL, "uni"))
    file = Key("mteb_subset", MODEL, "uni", "eos", TASK).path(folders / "results")
    file.write_text(file.read_text()[:-9])
    before = file.read_bytes()
    with pytest.raises(RecordError, match=str(file)):
        run_all(folders, StubEncoder(MODEL, "uni"))
    assert file.read_bytes() == before
