"""What the doctor estimates: tokens of a task, seconds, memory, sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_records import make_record

from llm2vec import estimates
from llm2vec.registry import MODELS, POOLINGS, SUITES, VARIANTS, get_task

SMALL, MISTRAL = MODELS["smollm2-135m"], MODELS["mistral-7b"]


# --------------------------------------------------------------------------- tokens
def measured(variant: str, tokens: int, model: str = SMALL.name, sharing: int = 3, **more: object):
    cost = {"tokens": tokens, "tokens_per_second": 100.0, "seconds": 1.0, "padding_tokens": 0,
            "poolings_sharing": sharing}  # fmt: skip
    made = make_record("mteb_subset", model, variant, "mean", "STSBenchmark", 0.5)
    return replace(made, cost=cost, **more)


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


# --------------------------------------------------------------------------- time, memory
def test_speed_comes_from_records_and_scales_with_parameters() -> None:
    found = estimates.speeds(SMALL, [measured("uni", 1000), measured("bi", 1000)])
    assert (found["cpu"].tokens_per_second, found["cpu"].basis) == (100, "records of this model")
    assert "arithmetic" in found["cuda"].basis
    scaled = estimates.speeds(MISTRAL, [measured("uni", 1000)])["cpu"]
    assert scaled.tokens_per_second == pytest.approx(100 * 134.5e6 / 7.242e9)
    assert "smollm2-135m" in scaled.basis


def test_memory_follows_the_weights() -> None:
    assert 14.4e9 < estimates.gpu_bytes(MISTRAL, "bfloat16") < 18e9
    assert estimates.gpu_bytes(MISTRAL, "float32") > 28e9
    tasks = [get_task("MSMARCO")]
    assert estimates.host_bytes(SMALL, "float32", tasks) > 5e9  # nine million passages
    # 8.8 million vectors of 4,096 floats
    assert estimates.vectors_bytes(MISTRAL, ("mean",), tasks) == pytest.approx(145e9, rel=0.01)


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
