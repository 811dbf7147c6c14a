"""What a scheduler is asked for, and suites that are run task by task to fit into it."""

import runpy
from pathlib import Path

import pytest
from synthetic_records import make_record

from llm2vec import evaluation, grid
from llm2vec.costs import Resources, limits, longest_of
from llm2vec.errors import SettingError
from llm2vec.estimates import host_bytes
from llm2vec.grid import Selection
from llm2vec.provenance import _Tree, _warn
from llm2vec.registry import MODELS, SUITES, TASKS
from llm2vec.registry_offline import OFFLINE_REVISIONS
from llm2vec.results import write_record

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = SUITES["offline"]
DAY = 24 * 60


@pytest.fixture(autouse=True)
def no_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("llm2vec.paths.shipped_adapters_dir", lambda: tmp_path / "shipped")


def selection(root: Path, *parts: str, **values: object) -> Selection:
    return Selection(parts=parts or ("offline",), results=root, **values)


def measure_all_but_four(root: Path) -> None:
    """Records of the offline suite as the experiment would write them."""
    run = evaluation.plan("smollm2-135m", "uni", "offline", root)
    pairs = [(task, pooling) for task in run.tasks for pooling in run.poolings]
    for task, pooling in pairs[:-4]:
        record = make_record(
            *("offline_suite", "smollm2-135m", "uni", pooling, task.name, 0.5),
            hyperparameters=evaluation.hyperparameters(run, task, pooling), adapters=(),
            dataset={
                "id": "some/data", "source": "mirror", "status": "exact",
                "revision": OFFLINE_REVISIONS[task.name],
            },
        )  # fmt: skip
        write_record(record, root)


def full(root: Path, **values: object) -> Selection:
    return selection(root, "full", models=("mistral-7b",), variant="bi", **values)


def test_a_suite_that_a_scheduler_gives_no_time_for_is_run_task_by_task(tmp_path: Path) -> None:
    (whole,) = grid.expand(full(tmp_path), gpu=True)
    pieces = grid.expand(full(tmp_path), gpu=True, longest=DAY)
    assert len(pieces) == len(SUITES["full"]) == len({job.name for job in pieces})
    assert [path for job in pieces for path in job.products] == list(whole.products)
    assert all(job.total == 1 for job in pieces)
    one = next(job for job in pieces if job.name == "full.mistral-7b.bi.SciFact")
    assert one.command == (
        "experiments/05_mteb_full.py", "--model=mistral-7b", "--variant=bi",
        "--skip-missing-data", "--task=SciFact", f"--results={tmp_path}",
    )  # fmt: skip
    assert one.cost.seconds < whole.cost.seconds / 20
    reranking = next(job for job in pieces if job.name.endswith(".MindSmallReranking"))
    assert isinstance(reranking.resources.mem_mb, int)
    held = host_bytes(MODELS["mistral-7b"], "bfloat16", [TASKS["MindSmallReranking"]])
    assert reranking.resources.mem_mb * 2**20 > held > 1.4 * one.resources.mem_mb * 2**20
    assert reranking.resources.mem_mb == whole.resources.mem_mb
    for job in pieces:
        assert max(map(job.resources.walltime, (1, 2, 3))) <= DAY


def test_pieces_have_the_missing_records_alone_and_wait_for_their_adapter(tmp_path: Path) -> None:
    measure_all_but_four(tmp_path)
    (whole,) = grid.expand(selection(tmp_path, variant="uni"))
    pieces = grid.expand(selection(tmp_path, variant="uni"), longest=1)
    assert [(len(job.products), job.total) for job in pieces] == [(1, 3), (3, 3)]
    assert {path for job in pieces for path in job.products} == set(whole.products)
    train, *pieces = grid.expand(selection(tmp_path, variant="bi-mntp"), longest=1)
    assert len(pieces) == len(OFFLINE) and {job.needs for job in pieces} == {(train.name,)}


def test_the_command_says_what_it_will_ask_for_and_that_the_tree_is_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second in front of the user, before weeks of measuring; a job's log nobody reads."""
    main = runpy.run_path(str(ROOT / "experiments" / "grid.py"))["main"]
    monkeypatch.setitem(main.__globals__, "report", lambda *_: None)
    asked: list[int] = []
    monkeypatch.setattr("llm2vec.engine.run", lambda jobs, *_: not asked.append(len(jobs)))
    monkeypatch.setattr("llm2vec.provenance._tree", lambda: _Tree("0" * 40, ("a.py",)))
    _warn.cache_clear()
    options = {"suite": "full", "model": "mistral-7b", "variant": "bi", "results": tmp_path}
    main("mteb", **options, profile="slurm", hours=12, dry_run=True)
    shown = capsys.readouterr()
    assert "56 jobs" in shown.out and shown.err == ""
    assert shown.out.splitlines()[-1].endswith("h a job, never above 12 h (HOURS=).")
    main("mteb", **options, profile="slurm")
    assert asked == [56]
    assert "not as committed: a.py" in capsys.readouterr().err


def test_what_fits_stays_one_job(tmp_path: Path) -> None:
    asked = selection(tmp_path, "offline", "short6", variant="uni")
    without = grid.expand(asked)
    assert [job.name for job in grid.expand(asked, longest=DAY)] == [job.name for job in without]
    assert {job.resources.longest for job in without} == {None}


def test_a_large_models_suite_may_have_several_gpus(tmp_path: Path) -> None:
    asked = selection(tmp_path, "subset", "words", models=("mistral-7b",), variant="uni", gpus=4)
    suite, words = grid.expand(asked, gpu=True)
    assert (suite.resources.gpus, words.resources.gpus) == (4, 1)
    assert "--device=cuda:all" in suite.command
    assert not any(a.startswith("--device") for a in words.command)
    (small,) = grid.expand(selection(tmp_path, "subset", variant="uni", gpus=4))
    assert small.resources.gpus == 0 and "--device=cuda:all" not in small.command
    with pytest.raises(SettingError, match="0 GPUs for a job"):
        selection(tmp_path, gpus=0)


def test_no_attempt_asks_for_more_than_a_scheduler_gives() -> None:
    asked = Resources(1, 100, 900, DAY)
    assert [asked.walltime(n) for n in (1, 2, 3)] == [905, DAY, DAY]
    assert [asked.limit(n) for n in (1, 2)] == [900, DAY - 5], "stopped by us, with a reason"
    free = Resources(1, 100, 900)
    assert [free.walltime(n) for n in (1, 2)] == [905, 1805]
    said = limits([asked, Resources(1, 100, 60, DAY)])
    assert said == ["Walltime asked for: 1.08 h to 15.1 h a job, never above 24 h (HOURS=)."]
    assert limits([free]) == limits([]) == []


def test_a_scheduler_has_a_limit_and_a_machine_of_ones_own_has_none() -> None:
    profiles = ROOT / "experiments" / "profiles"
    assert longest_of(profiles / "slurm") == DAY
    assert longest_of(profiles / "slurm", 48.5) == 2 * DAY + 30
    assert longest_of(profiles / "local") is longest_of(profiles / "gpu", 3) is None
    for hours in (0.5, -1, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="hours for a job"):
            longest_of(profiles / "slurm", hours)
