"""The grid: what is missing, which jobs make it, at what cost."""

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_records import make_record

from llm2vec import adapters, evaluation, grid, layers, results
from llm2vec.costs import Cost, Costs, resources_of
from llm2vec.errors import AdapterError, LLM2VecError, RecordError, SettingError, UnknownNameError
from llm2vec.grid import Selection
from llm2vec.jobs import Job
from llm2vec.registry import MODELS, POOLINGS, SUITES, VARIANTS
from llm2vec.registry_offline import OFFLINE_REVISIONS
from llm2vec.results import write_record

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = SUITES["offline"]
SMOLLM2 = "smollm2-135m"
DATA = {"id": "some/data", "source": "mirror", "status": "exact"}


@pytest.fixture(autouse=True)
def no_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No adapter at hand but what a test puts into this folder."""
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("llm2vec.paths.shipped_adapters_dir", lambda: tmp_path / "shipped")
    return tmp_path / "checkpoints"


def add_adapter(checkpoints: Path, stage: str, content: str = "weights") -> str:
    folder = checkpoints / SMOLLM2 / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / adapters.ADAPTER_WEIGHTS).write_text(content)
    return adapters.adapter_hash(folder)


def selection(root: Path, *parts: str, **values: object) -> Selection:
    return Selection(parts=parts or ("offline",), results=root, **values)


def measure(
    root: Path, variant: str, hashes: tuple[str, ...] = (), leave: int = 0, suite: str = "offline"
) -> list[Path]:
    """Records of a whole suite as the experiment would write them, but for the last ``leave``."""
    run = evaluation.plan(SMOLLM2, variant, suite, root)
    pairs = [(task, pooling) for task in run.tasks for pooling in run.poolings]
    return [
        write_record(
            make_record(
                *(run.key(task, p).experiment, SMOLLM2, variant, p, task.name, 0.5),
                hyperparameters=evaluation.hyperparameters(run, task, p), adapters=hashes,
                dataset=DATA | {"revision": OFFLINE_REVISIONS.get(task.name, task.revision)},
            ),
            root,
        )
        for task, p in pairs[: len(pairs) - leave]
    ]  # fmt: skip


def names(found: list[Job]) -> list[str]:
    return [job.name for job in found]


# --------------------------------------------------------------------------- what is missing
def test_planning_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "mteb", "datasets", "peft")
    code = (
        "import sys\nfrom llm2vec import engine, grid\n"
        "grid.expand(grid.Selection(parts=grid.GOALS['all'], models=('all',)))\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_a_job_has_the_missing_records_alone(tmp_path: Path) -> None:
    there = measure(tmp_path, "uni", leave=2)
    (job,) = grid.expand(selection(tmp_path, variant="uni"))
    assert job.name == "offline.smollm2-135m.uni"
    assert (len(job.products), job.total) == (2, len(OFFLINE) * 3)
    assert set(job.products).isdisjoint(there)
    assert job.command == (
        "experiments/04_mteb_subset.py", "--model=smollm2-135m", "--variant=uni",
        "--suite=offline", f"--results={tmp_path}",
    )  # fmt: skip


def test_other_hyperparameters_are_missing_and_times_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, path in enumerate(measure(tmp_path, "uni")):
        os.utime(path, (number, number))
    assert grid.expand(selection(tmp_path, variant="uni")) == []
    monkeypatch.setattr(evaluation, "TEXT_MAX_LENGTH", 300)
    (job,) = grid.expand(selection(tmp_path, variant="uni"))
    assert len(job.products) == job.total


def test_records_of_other_data_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(tmp_path, "uni")
    changed = OFFLINE_REVISIONS | {OFFLINE[3]: "0" * 16}
    monkeypatch.setattr(evaluation, "OFFLINE_REVISIONS", changed)
    (job,) = grid.expand(selection(tmp_path, variant="uni"))
    assert {path.stem for path in job.products} == {OFFLINE[3]}
    assert len(job.products) == len(POOLINGS)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    measure(tmp_path, "uni")[3].write_text("{}")
    with pytest.raises(RecordError, match="is missing"):
        grid.expand(selection(tmp_path, variant="uni"))


# --------------------------------------------------------------------------- adapters
def test_records_stand_while_their_adapter_is_not_at_hand(tmp_path: Path) -> None:
    measure(tmp_path, "bi-mntp", ("a" * 64,))
    assert grid.expand(selection(tmp_path, variant="bi-mntp")) == []


def test_with_another_adapter_at_hand_they_are_measured_again(
    tmp_path: Path, no_adapters: Path
) -> None:
    measure(tmp_path, "bi-mntp", (add_adapter(no_adapters, "mntp"),))
    assert grid.expand(selection(tmp_path, variant="bi-mntp")) == []
    add_adapter(no_adapters, "mntp", "other weights")
    (job,) = grid.expand(selection(tmp_path, variant="bi-mntp"))
    assert len(job.products) == job.total and job.needs == ()


def test_a_missing_record_has_its_adapter_trained_first(tmp_path: Path) -> None:
    """And whatever depends on the new adapter is measured again, other suites included."""
    measure(tmp_path, "bi-mntp", ("a" * 64,), leave=1)
    measure(tmp_path, "bi-mntp", ("a" * 64,), suite="short6")
    train, offline, short = grid.expand(selection(tmp_path, "offline", "short6", variant="bi-mntp"))
    assert train.name == "train.smollm2-135m.mntp"
    assert train.command == ("experiments/01_train_mntp.py", "--model", SMOLLM2)
    assert offline.needs == short.needs == (train.name,)
    assert len(offline.products) == offline.total and len(short.products) == short.total


def test_stages_follow_one_another(tmp_path: Path, no_adapters: Path) -> None:
    found = {job.name: job for job in grid.expand(selection(tmp_path, variant="bi-mntp-simcse"))}
    second = found["train.smollm2-135m.mntp-simcse"]
    assert second.needs == ("train.smollm2-135m.mntp",)
    assert second.command[-2:] == ("--variant", "bi-mntp-simcse")
    add_adapter(no_adapters, "mntp")
    found = {job.name: job for job in grid.expand(selection(tmp_path, variant="bi-mntp-simcse"))}
    assert list(found) == [second.name, "offline.smollm2-135m.bi-mntp-simcse"]
    assert found[second.name].needs == ()


def test_a_shipped_adapter_counts_as_trained(tmp_path: Path) -> None:
    add_adapter(tmp_path / "shipped", "mntp")
    assert names(grid.expand(selection(tmp_path, variant="bi-mntp"))) == [
        "offline.smollm2-135m.bi-mntp"
    ]


def test_without_training_only_what_is_at_hand_runs(tmp_path: Path, no_adapters: Path) -> None:
    add_adapter(no_adapters, "uni-simcse")
    found = names(grid.expand(selection(tmp_path, train=False)))
    assert found == [
        "offline.minilm-l6.encoder", "offline.smollm2-135m.uni", "offline.smollm2-135m.bi",
        "offline.smollm2-135m.uni-simcse", "offline.smollm2-135m.echo",
    ]  # fmt: skip
    with pytest.raises(AdapterError, match=r"01_train_mntp\.py --model smollm2-135m"):
        grid.expand(selection(tmp_path, train=False, variant="bi-mntp"))


def test_mistral_has_an_adapter_for_words_alone(tmp_path: Path) -> None:
    found = grid.expand(
        selection(tmp_path, "words", "offline", models=("mistral-7b",), variant="bi-mntp")
    )
    needs = {job.name: job.needs for job in found}
    assert needs["words.mistral-7b.bi-mntp"] == ("train.mistral-7b.mntp-words",)
    assert needs["offline.mistral-7b.bi-mntp"] == ("train.mistral-7b.mntp",)
    words = next(job for job in found if job.name == "train.mistral-7b.mntp-words")
    assert words.command == ("experiments/01_train_mntp.py", "--model", "mistral-7b", "--words")


def test_published_adapters_are_never_trained_nor_fetched_to_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def refuse(*_: object, local_files_only: bool, **__: object) -> None:
        asked.append(local_files_only)
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    found = grid.expand(selection(tmp_path, "subset", models=("mistral-7b",), adapters="published"))
    variants = [job.name.rpartition(".")[2] for job in found]
    assert variants == ["uni", "bi", "bi-mntp", "bi-mntp-simcse", "echo"]
    assert all("--adapters=published" in job.command and not job.needs for job in found)
    assert asked and all(asked)


def test_triples_with_published_adapters_have_a_record_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid.places, "published_adapters", lambda *_, **__: [])
    names = {}
    for source in grid.ADAPTER_SOURCES:
        found = selection(tmp_path, grid.LEAKAGE, models=("mistral-7b",), adapters=source)
        for cell in grid.cells(found):
            (path,) = cell.records()[0]
            names[source, cell.variant.name] = path.name
    assert names["own", "bi-mntp"] == names["own", "uni"] == "triples.json"
    assert names["published", "bi-mntp"] == "triples@published.json"
    assert names["published", "uni"] == "triples.json", "it has no adapters"


# --------------------------------------------------------------------------- jobs
@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    root = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM2VEC_CHECKPOINTS", str(root / "checkpoints"))
        patch.setattr("llm2vec.paths.shipped_adapters_dir", lambda: root / "shipped")
        parts = (*grid.GOALS["all"], "short6", "exact8")
        return grid.expand(Selection(parts=parts, models=("all",), results=root))


def test_every_job_can_be_run_after_those_it_needs(everything: list[Job]) -> None:
    before: set[str] = set()
    for job in everything:
        assert set(job.needs) <= before, job.name
        assert job.name not in before
        before.add(job.name)


def test_no_two_jobs_of_a_goal_make_the_same_record(tmp_path: Path) -> None:
    for goal in grid.GOALS:
        made = [
            path
            for job in grid.expand(selection(tmp_path, *grid.parts_of(goal), models=("all",)))
            for path in job.products
        ]
        assert len(made) == len(set(made)) > 0, goal


def test_commands_use_options_that_the_scripts_have(everything: list[Job]) -> None:
    options: dict[str, set[str]] = {}
    for job in everything:
        script, *arguments = job.command
        if script not in options:
            tree = ast.parse((ROOT / script).read_text())
            (main,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
            options[script] = {arg.arg for arg in main.args.args}
        for argument in (a for a in arguments if a.startswith("--")):
            name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
            assert name in options[script], job.command
    assert len(options) == 7


def test_the_whole_paper_is_in_the_grid(everything: list[Job]) -> None:
    """Every model and variant of Tables 4 and 5 has its job; so has each model of Figure 9."""
    import csv

    for number, part in ((4, "words"), (5, "subset")):
        with open(ROOT / "results" / "paper" / f"table{number}.csv", newline="") as handle:
            cells = {f"{part}.{row['model']}.{row['variant']}" for row in csv.DictReader(handle)}
        assert cells <= set(names(everything)) and len(cells) > 10
    decoders = {name for name, model in MODELS.items() if model.kind == "decoder"}
    assert {f"layers.{name}.bi" for name in decoders} <= set(names(everything))


def test_leakage_is_asked_for_every_variant_that_the_figures_compare(tmp_path: Path) -> None:
    asked = selection(tmp_path, "leakage", models=("mistral-7b", "bert-base"))
    assert [job.name for job in grid.expand(asked) if job.name.startswith("leakage")] == [
        *(f"leakage.mistral-7b.{v}" for v in ("uni", "bi", "bi-mntp", "bi-mntp-simcse", "echo")),
        "leakage.bert-base.encoder",
    ]  # fmt: skip


def test_the_full_table_has_one_pooling_each(tmp_path: Path) -> None:
    asked = selection(tmp_path, "full", models=("mistral-7b",))
    poolings = {
        job.name.rpartition(".")[2]: {path.parent.name for path in job.products}
        for job in grid.expand(asked)
        if job.name.startswith("full")
    }
    assert poolings["uni"] == {"weighted_mean"}
    assert poolings["bi-mntp-simcse"] == poolings["echo"] == {"mean"}


def test_echo_has_the_full_tables_pooling_on_mteb_and_all_on_the_own_suite(tmp_path: Path) -> None:
    for part, expected in (("subset", {"mean"}), ("offline", set(POOLINGS))):
        (job,) = grid.expand(selection(tmp_path, part, variant="echo"))
        assert {path.parent.name for path in job.products} == expected


def test_one_pooling_is_asked_for_as_the_script_has_it(tmp_path: Path) -> None:
    (job,) = grid.expand(selection(tmp_path, "subset", variant="uni", pooling="eos"))
    assert "--pooling=eos" in job.command
    assert {path.parent.name for path in job.products} == {"eos"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ("smolm2-135m",)}, "Did you mean 'smollm2-135m'"),
        ({"variant": "mntp"}, "unknown variant"),
        ({"pooling": "cls"}, "unknown pooling"),
        ({"adapters": "mine"}, "unknown source of adapters"),
        ({"parts": ("sts",)}, "unknown suite"),
    ],
)
def test_unknown_names_are_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        Selection(**{"parts": ("offline",), "results": tmp_path} | values)


def test_goals_and_suites() -> None:
    assert grid.parts_of("mteb") == ("subset",)
    assert grid.parts_of("mteb", "full") == ("full",)
    with pytest.raises(SettingError, match="leave --suite out"):
        grid.parts_of("words", "full")
    with pytest.raises(UnknownNameError, match="unknown goal"):
        grid.parts_of("everything")
    with pytest.raises(SettingError, match=r"nothing to do.*Valid variants: encoder"):
        grid.cells(Selection(parts=("subset",), models=("minilm-l6",), variant="uni"))


def test_the_paragraphs_are_known_without_reading_them() -> None:
    """The hash of layer similarity's texts stands in the code; the corpus must still give it."""
    record = results.read_record(
        ROOT / "results/raw/layer_similarity/smollm2-135m/bi/none/wikipedia.json"
    )
    assert record.dataset == layers.WIKIPEDIA
    try:
        assert layers.wikipedia_paragraphs().source == layers.WIKIPEDIA
    except LLM2VecError as error:
        pytest.skip(f"no embedded corpora: {error}")


# --------------------------------------------------------------------------- costs
@given(st.floats(1, 1e7), st.booleans())
def test_a_scheduler_can_meet_every_request(seconds: float, training: bool) -> None:
    for model in MODELS.values():
        asked = resources_of(model, Cost(1, seconds), training=training)
        assert asked.minutes >= 60 and asked.minutes >= seconds / 60
        assert asked.mem_mb > model.parameters * 2 / 2**20
        assert asked.gpus == (model.parameters > 1e9)


def test_costs_come_from_records_where_there_are_any(tmp_path: Path) -> None:
    task = evaluation.get_task("STSBenchmark")
    model, bi, uni = MODELS[SMOLLM2], VARIANTS["bi"], VARIANTS["uni"]
    before = Costs(tmp_path).tasks(model, uni, [task], POOLINGS).tokens
    assert 20_000 < before < 200_000  # 147,886 characters and the instructions
    for variant, tokens in (("uni", 700), ("bi", 1400)):  # bi: eos is a second pass
        cost = {"seconds": 1.0, "tokens": tokens, "tokens_per_second": 100.0, "poolings_sharing": 3}
        write_record(
            make_record("mteb_subset", SMOLLM2, variant, "mean", task.name, 0.5, cost=cost),
            tmp_path,
        )
    costs = Costs(tmp_path)
    assert costs.tasks(model, uni, [task], POOLINGS).tokens == 700
    assert costs.tasks(model, bi, [task], POOLINGS).tokens == 1400
    assert costs.tasks(model, bi, [task], ["mean"]).tokens == 700
    large = costs.tasks(MODELS["mistral-7b"], bi, [task], POOLINGS).seconds
    assert large > 40 * 1400 / 100  # by the parameters, 54 times as slow
    on_gpu = Costs(tmp_path, gpu=True).tasks(MODELS["mistral-7b"], bi, [task], POOLINGS)
    assert on_gpu.seconds < large / 5


def test_training_costs_follow_the_settings() -> None:
    model = MODELS[SMOLLM2]
    costs = Costs(Path("nowhere"))
    half = replace(model.mntp, steps=model.mntp.steps // 2)
    assert costs.training(model, half).tokens * 2 == costs.training(model, model.mntp).tokens


def test_damaged_records_do_not_keep_costs_from_being_estimated(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "x"
    folder.mkdir(parents=True)
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"cost": {"tokens": "many"}}')):
        (folder / f"{name}.json").write_text(text)
    task = [evaluation.get_task("STSBenchmark")]
    assert Costs(tmp_path).tasks(MODELS[SMOLLM2], VARIANTS["uni"], task, ["mean"]).tokens > 0
