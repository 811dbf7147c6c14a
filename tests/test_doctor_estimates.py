"""What the doctor estimates: tokens of a task, seconds, memory, sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_records import make_record

from llm2vec import estimates
from llm2vec.registry import MODELS, POOLINGS, SUITES, VARIANTS, Model, get_task

SMALL, MISTRAL = MODELS["smollm2-135m"], MODELS["mistral-7b"]


# --------------------------------------------------------------------------- tokens
def measured(
    variant: str, tokens: int, model: str = SMALL.name, sharing: int = 3, pooling: str = "mean"
):
    cost = {"tokens": tokens, "tokens_per_second": 100.0, "seconds": 1.0, "padding_tokens": 0,
            "poolings_sharing": sharing}  # fmt: skip
    made = make_record("mteb_subset", model, variant, pooling, "STSBenchmark", 0.5)
    return replace(made, cost=cost)


STS = get_task("STSBenchmark")


@pytest.mark.parametrize(
    ("records", "variant", "expected"),
    [
        ([measured("uni", 1000)], "uni", (1000, "records of this variant")),
        ([measured("uni", 1000), measured("bi", 9000)], "uni", (1000, "records of this variant")),
        # Three poolings are two passes of a bidirectional model, and echo shows a text twice.
        ([measured("uni", 1000)], "bi", (2000, "records of other variants")),
        ([measured("bi", 2000)], "uni", (1000, "records of other variants")),
        ([measured("uni", 1000)], "echo", (2000, "records of other variants")),
        ([measured("echo", 2000)], "bi", (2000, "records of other variants")),
        ([measured("uni", 1000, "mistral-7b")], "bi", (2000, "records of other models")),
        # Mean and weighted mean are one pass, which the second record does not repeat.
        (
            [
                measured("bi", 1000, sharing=2, pooling=pooling)
                for pooling in ("mean", "weighted_mean")
            ],
            "uni",
            (1000, "records of other variants"),
        ),
        # Of two poolings one is not there: eos or not, so two passes or one.
        (
            [measured("bi", 1500, sharing=2), measured("bi-mntp", 1000, sharing=1)],
            "uni",
            (1000, "records of other variants"),
        ),
    ],
)
def test_tokens_come_from_the_nearest_records(
    records: list, variant: str, expected: tuple[int, str]
) -> None:
    found = estimates.tokens_of(STS, SMALL, VARIANTS[variant], POOLINGS, records)
    assert (found.count, found.basis) == expected


def test_records_of_a_baseline_say_nothing_about_a_decoder() -> None:
    """It takes no instruction."""
    records = [measured("encoder", 1000, "minilm-l6", 1)]
    found = estimates.tokens_of(STS, SMALL, VARIANTS["uni"], POOLINGS, records)
    assert found.basis == "size of the texts"
    own = estimates.tokens_of(STS, MODELS["bert-base"], VARIANTS["encoder"], ("none",), records)
    assert (own.count, own.basis) == (1000, "records of other models")


def test_a_task_of_unknown_size() -> None:
    task = get_task(SUITES["offline"][0])
    found = estimates.tokens_of(task, SMALL, VARIANTS["uni"], POOLINGS, [])
    assert (found.count, found.basis) == (None, "unknown")


def test_sizes_foretell_the_tokens_that_were_measured(repo_root: Path) -> None:
    """Without records, within a factor of two of what committed records counted."""
    counted = {}
    for file in (repo_root / "results/raw/mteb_subset/smollm2-135m/uni/mean").glob("*.json"):
        counted[file.stem] = json.loads(file.read_text())["cost"]["tokens"]
    counted = {name: tokens for name, tokens in counted.items() if "@" not in name}
    assert len(counted) >= 6
    for name, tokens in counted.items():
        found = estimates.tokens_of(get_task(name), SMALL, VARIANTS["uni"], POOLINGS, [])
        assert found.basis == "size of the texts"
        assert tokens / 2 < found.count < 2 * tokens, name


def test_only_eos_beside_others_is_a_second_pass() -> None:
    times = [
        estimates.passes(VARIANTS["bi"], poolings)
        for poolings in (("mean",), ("eos",), ("mean", "weighted_mean"), ("mean", "eos"))
    ]
    assert times == [1, 1, 1, 2]
    assert estimates.passes(VARIANTS["uni"], POOLINGS) == 1


# --------------------------------------------------------------------------- time, memory
def test_speed_comes_from_records_and_scales_with_parameters() -> None:
    found = estimates.speeds(SMALL, [measured("uni", 1000), measured("bi", 1000)])
    assert (found["cpu"].tokens_per_second, found["cpu"].basis) == (100, "records of this model")
    assert "arithmetic" in found["cuda"].basis
    scaled = estimates.speeds(MISTRAL, [measured("uni", 1000)])["cpu"]
    assert scaled.tokens_per_second == pytest.approx(100 * 134.5e6 / 7.242e9)
    assert "smollm2-135m" in scaled.basis


def timed(
    pooling: str, tokens: int, seconds: float, dtype: str = "float32", task: str = "STSBenchmark"
):
    """A record of one of three poolings that shared their passes."""
    experiment = "offline_suite" if task.startswith("Offline") else "mteb_subset"
    made = make_record(experiment, SMALL.name, "uni", pooling, task, 0.5)
    cost = {"tokens": tokens, "encoding_seconds": seconds, "seconds": seconds + 1,
            "tokens_per_second": tokens / seconds, "poolings_sharing": 3}  # fmt: skip
    setting = None if dtype == "float32" else dtype
    return replace(made, cost=cost, setting=setting, provenance=made.provenance | {"dtype": dtype})


def test_speed_is_of_the_dtype_asked_for() -> None:
    slow = [timed(pooling, 1000, 10) for pooling in POOLINGS]
    fast = [timed(pooling, 1000, 1, "bfloat16") for pooling in POOLINGS]
    before, after = (estimates.speeds(SMALL, found)["cpu"] for found in (slow, slow + 9 * fast))
    assert before == after and after.tokens_per_second == 100
    asked = estimates.speeds(SMALL, slow + fast, "bfloat16")["cpu"]
    assert (asked.tokens_per_second, asked.basis) == (1000, "records of this model")
    other = estimates.speeds(SMALL, fast)["cpu"]
    assert (other.tokens_per_second, other.basis) == (1000, "records of this model in bfloat16")


def test_speed_is_of_all_passes_each_once_those_of_mteb_first() -> None:
    """Three records of one pass weigh as much as one of another; long passes weigh more."""
    shared = [timed(pooling, 1000, 10) for pooling in POOLINGS]
    long = timed("mean", 9000, 20, task="SICK-R")
    offline = [timed("mean", 100, 10, task=task) for task in SUITES["offline"]]
    found = estimates.speeds(SMALL, [*offline, *shared, long])["cpu"]
    assert found.tokens_per_second == pytest.approx(10_000 / 30)
    assert estimates.speeds(SMALL, offline)["cpu"].tokens_per_second == 10


def test_memory_follows_the_weights() -> None:
    assert 14.4e9 < estimates.gpu_bytes(MISTRAL, "bfloat16") < 18e9
    assert estimates.gpu_bytes(MISTRAL, "float32") > 28e9
    tasks = [get_task("MSMARCO")]
    assert estimates.host_bytes(SMALL, "float32", tasks) > 5e9  # nine million passages
    # 8.8 million vectors of 4,096 floats
    assert estimates.vectors_bytes(MISTRAL, ("mean",), tasks) == pytest.approx(145e9, rel=0.01)


def test_memory_of_the_host_counts_what_scoring_holds() -> None:
    """Vectors and mteb's copy of them, and 97 million candidates of the reranking of news."""

    def scoring(name: str, model: Model = MISTRAL) -> float:
        found = [estimates.host_bytes(model, "bfloat16", tasks) for tasks in ((), [get_task(name)])]
        return found[1] - found[0]

    assert scoring("ArxivClusteringP2P") > 2 * 628_409 * 4096 * 4
    assert scoring("ArxivClusteringP2P", SMALL) < scoring("ArxivClusteringP2P") / 4
    assert 35e9 < scoring("MindSmallReranking") < 45e9
    assert 35e9 < scoring("MindSmallReranking", SMALL) < 45e9
    assert scoring("STSBenchmark") < 0.1e9
    assert estimates.held_in_memory()["MindSmallReranking"] == (5_277 + 37_162, 97_008_807)
    assert estimates.held_in_memory()["MSMARCO"] == (6_980 + 50_000, 0)
    assert estimates.held_in_memory()["FiQA2018"] == (648 + 10_000, 0)


def test_the_batch_is_that_of_the_encoder() -> None:
    from llm2vec.batching import GPU_TOKENS, MAX_TOKENS

    assert (estimates.BATCH_TOKENS, estimates.GPU_BATCH_TOKENS) == (MAX_TOKENS, GPU_TOKENS)


def test_a_small_model_says_nothing_of_a_large_one_on_a_gpu() -> None:
    """It waits for its kernels: scaled by parameters it would make a large one fifty times slow."""
    made = measured("uni", 1000)
    records = [replace(made, provenance=made.provenance | {"device": "cuda:0"})]
    assert estimates.speeds(SMALL, records)["cuda"].basis == "records of this model"
    found = estimates.speeds(MISTRAL, records)["cuda"]
    assert "arithmetic" in found.basis and found.tokens_per_second > 5000


# --------------------------------------------------------------------------- sizes
def test_sizes_and_parts_are_mtebs() -> None:
    """Both tables would be written anew just as they are."""
    from llm2vec.task_sizes import PARTS, SIZES, tables

    sizes, parts = tables()
    assert SIZES.read_text() == sizes
    assert PARTS.read_text() == parts
    assert set(estimates.task_sizes()) == set(SUITES["full"])


def test_no_task_has_more_instructions_than_texts() -> None:
    for name, (texts, characters, instructed) in estimates.task_sizes().items():
        assert 0 < instructed <= texts < characters, name
        assert (instructed == texts) == get_task(name).symmetric, name
