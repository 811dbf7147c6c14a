"""The registry against its sources: mteb's benchmark, the paper's tables, the paper's text."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from llm2vec.errors import UnknownNameError
from llm2vec.registry import (
    MODELS,
    POOLINGS,
    PROBE,
    SUITES,
    TASKS,
    UNPINNED,
    VARIANTS,
    get_model,
    get_pooling,
    get_suite,
    get_task,
    get_variant,
    settings_dict,
    variants_of,
)
from llm2vec.registry_datasets import HUB_REVISIONS, MIRROR_NAMES

PAPER_DECODERS = ("s-llama-1.3b", "llama-2-7b", "mistral-7b", "llama-3-8b")


def paper_rows(repo_root: Path, table: str) -> list[dict[str, str]]:
    with open(repo_root / "results" / "paper" / f"{table}.csv", newline="") as handle:
        return list(csv.DictReader(handle))


# --------------------------------------------------------------------------- tasks
@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    mteb = pytest.importorskip("mteb")
    return {task.metadata.name: task for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}


def test_full_suite_is_the_benchmark(benchmark: dict[str, Any]) -> None:
    assert len(SUITES["full"]) == 56
    assert sorted(SUITES["full"]) == sorted(benchmark)


def test_task_facts_are_those_of_mteb(benchmark: dict[str, Any]) -> None:
    for name, theirs in benchmark.items():
        ours, data = TASKS[name], theirs.metadata
        assert (ours.name, ours.type, ours.metric) == (name, data.type, data.main_score)
        assert (ours.dataset, ours.revision) == (data.dataset["path"], data.dataset["revision"])
        assert [ours.split] == list(theirs.eval_splits)
        assert [ours.subset] == list(theirs.hf_subsets)
        assert ours.superseded_by == (data.superseded_by or "")


# mteb states no instruction for these; the paper's Table 10 does.
ONLY_IN_THE_PAPER = {
    "CQADupstackRetrieval": (
        "Given a question, retrieve detailed question descriptions from Stackexchange that are "
        "duplicates to the given question"
    ),
    "SummEval": "Given a news summary, retrieve other semantically similar summaries",
} | dict.fromkeys(
    ("BIOSSES", "SICK-R", "STS12", "STS13", "STS14", "STS15", "STS16", "STS17", "STS22",
     "STSBenchmark"),
    "Retrieve semantically similar text",
)  # fmt: skip


def test_instructions_differ_from_mtebs_only_where_mteb_has_none(
    benchmark: dict[str, Any],
) -> None:
    different = {}
    for name, theirs in benchmark.items():
        prompt = theirs.metadata.prompt
        query = prompt.get("query") if isinstance(prompt, dict) else prompt
        if query != TASKS[name].instruction:
            assert prompt is None, name
            different[name] = TASKS[name].instruction
    assert different == ONLY_IN_THE_PAPER


def test_instructions_are_those_of_table_10(repo_root: Path) -> None:
    """As released, but for one spelling, where mteb's is taken."""
    with open(repo_root / "results" / "paper" / "table10.csv", newline="") as handle:
        printed = {row["task"]: row["instruction"] for row in csv.DictReader(handle)}
    assert set(printed) == set(SUITES["full"])
    other = {name: text for name, text in printed.items() if TASKS[name].instruction != text}
    assert list(other) == ["AmazonCounterfactualClassification"]
    (text,) = other.values()
    assert text.replace("notcounterfactual", "not-counterfactual") == (
        TASKS["AmazonCounterfactualClassification"].instruction
    )


def test_instructions_have_no_final_punctuation() -> None:
    assert [t.name for t in TASKS.values() if not t.instruction[-1].isalpha()] == []


def test_subset_is_the_papers_table_3(repo_root: Path) -> None:
    rows = paper_rows(repo_root, "table3")
    assert sorted(SUITES["subset"]) == sorted(row["task"] for row in rows)
    assert len(SUITES["subset"]) == 15
    assert {row["task"]: row["category"] for row in rows} == {
        name: TASKS[name].type for name in SUITES["subset"]
    }


def test_full_suite_is_the_papers_table_11(repo_root: Path) -> None:
    printed = {row["task"] for row in paper_rows(repo_root, "table11")} - {"Average"}
    assert set(SUITES["full"]) == printed


def test_suites_hold_each_task_once_and_nest() -> None:
    for names in SUITES.values():
        assert len(set(names)) == len(names)
        assert set(names) <= set(TASKS)
    short, exact, subset, full = (SUITES[s] for s in ("short6", "exact8", "subset", "full"))
    assert set(short) < set(exact) < set(subset) < set(full)
    assert not set(SUITES["offline"]) & set(full)


def test_offline_suite_has_the_proportions_of_the_subset() -> None:
    def types(suite: str) -> list[str]:
        return sorted(TASKS[name].type for name in SUITES[suite])

    assert types("offline") == types("subset")


def test_only_retrieval_and_reranking_are_asymmetric() -> None:
    asymmetric = {task.type for task in TASKS.values() if not task.symmetric}
    assert asymmetric == {"Retrieval", "Reranking"}


# --------------------------------------------------------------------------- models
def test_every_model_of_the_papers_tables_is_known(repo_root: Path) -> None:
    for table in ("table1", "table4", "table5", "table6", "table11"):
        for row in paper_rows(repo_root, table):
            assert row["model"] in MODELS, (table, row)


def test_revisions_are_commits_or_say_that_they_are_not() -> None:
    revisions = [m.revision for m in MODELS.values() if m.asset is None]
    revisions += [revision for m in MODELS.values() for _, revision in m.published.values()]
    for revision in revisions:
        assert revision == UNPINNED or (len(revision) == 40 and int(revision, 16))


def test_what_has_no_pinned_revision_is_known_by_name() -> None:
    """A record of these says "unpinned"; whoever can reach the hub may fill them in."""
    pins = [(m.hub_id, m.revision) for m in MODELS.values()]
    pins += [pin for m in MODELS.values() for pin in m.published.values()]
    assert {hub_id for hub_id, revision in pins if revision == UNPINNED} == {
        "princeton-nlp/unsup-simcse-bert-base-uncased",
        "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-unsup-simcse",
        "McGill-NLP/LLM2Vec-Llama-2-7b-chat-hf-mntp",
    }


def test_embedded_models_name_their_asset_as_revision() -> None:
    embedded = {m.name: m.revision for m in MODELS.values() if m.asset}
    assert embedded["smollm2-135m"] == "asset:smollm2-135m"
    assert set(embedded) == {"smollm2-135m", "minilm-l6"}


def test_variants_of_decoders_and_encoders_share_none() -> None:
    decoder = variants_of(MODELS["smollm2-135m"])
    encoder = variants_of(MODELS["minilm-l6"])
    assert encoder == ("encoder",)
    assert set(decoder) | set(encoder) == set(VARIANTS)
    assert not set(decoder) & set(encoder)


def test_adapter_of_each_variant() -> None:
    assert {name: v.adapter for name, v in VARIANTS.items()} == {
        "uni": None,
        "bi": None,
        "bi-mntp": "mntp",
        "uni-simcse": "uni-simcse",
        "bi-simcse": "bi-simcse",
        "bi-mntp-simcse": "mntp-simcse",
        "echo": None,
        "encoder": None,
    }


# --------------------------------------------------------------------------- hyperparameters
# arXiv 2404.05961, D.1.1-D.1.3 and 2.2, where not marked "code" (the authors' configurations).
MNTP_PAPER = {
    "mask_token": "_",
    "steps": 1000,
    "batch_size": 32,
    "block_size": 512,  # code
    "learning_rate": 5e-5,  # code
    "warmup_steps": 0,  # code
    "weight_decay": 0.0,  # code
    "max_grad_norm": 1.0,  # code
    "seed": 42,  # code
}
SIMCSE_PAPER = {
    "attention_dropout": 0.3,
    "scale": 20.0,  # code
    "steps": 1000,
    "max_length": 128,  # code
    "learning_rate": 3e-5,  # code
    "warmup_steps": 0,  # code
    "weight_decay": 0.0,  # code
    "max_grad_norm": 1.0,  # code
    "pool_over_padding": False,  # Figure 1; the code averages padding
    "seed": 42,  # code
}
LORA_PAPER = {
    "r": 16,
    "alpha": 32,
    "dropout": 0.05,  # code
    "target_modules": [  # code
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ],
}  # fmt: skip
PROBE_PAPER = {
    "learning_rate": 5e-4,
    "batch_size": 8,
    "steps": 1500,
    "dropout": 0.1,
    "max_length": 512,  # code
}
MASKING = {  # D.1.1
    "s-llama-1.3b": (0.2, "bert"),
    "llama-2-7b": (0.2, "bert"),
    "mistral-7b": (0.8, "all"),
    "llama-3-8b": (0.2, "bert"),
}
SIMCSE_BATCH = {  # D.1.2
    "s-llama-1.3b": 32,
    "llama-2-7b": 128,
    "mistral-7b": 128,
    "llama-3-8b": 128,
}


@pytest.mark.parametrize("name", PAPER_DECODERS)
def test_hyperparameters_of_the_papers_models(name: str) -> None:
    model = MODELS[name]
    mntp, simcse = settings_dict(model.mntp), settings_dict(model.simcse)
    assert mntp | MNTP_PAPER == mntp
    assert simcse | SIMCSE_PAPER == simcse
    assert mntp["lora"] == simcse["lora"] == LORA_PAPER
    assert (mntp["mask_probability"], mntp["masking"]) == MASKING[name]
    assert simcse["batch_size"] == SIMCSE_BATCH[name]


def test_mistral_has_a_second_masking_for_words() -> None:
    """D.1.1: the word-level experiments use a checkpoint with BERT's masking at 0.2."""
    words = MODELS["mistral-7b"].mntp_words
    assert (words.mask_probability, words.masking) == (0.2, "bert")
    assert [m.name for m in MODELS.values() if m.mntp_words] == ["mistral-7b"]


def test_probe_is_the_papers() -> None:
    probe = settings_dict(PROBE)
    assert probe | PROBE_PAPER == probe


def test_schedules_are_laid_out_for_the_papers_corpora() -> None:
    """Linear over three (probe: ten) epochs, cut early: the learning rate hardly decays."""
    simcse, mntp = MODELS["llama-2-7b"].simcse, MODELS["llama-2-7b"].mntp
    assert simcse.schedule_steps == 3 * 10**6 // 128
    assert mntp.schedule_steps == pytest.approx(3 * 118e6 / 512 / 32, rel=0.01)
    assert PROBE.schedule_steps == pytest.approx(10 * 14_041 / 8, rel=0.001)


def test_everything_is_frozen() -> None:
    objects = [MODELS["mistral-7b"], VARIANTS["uni"], TASKS["SciFact"], PROBE]
    objects += [MODELS["mistral-7b"].mntp, MODELS["mistral-7b"].simcse]
    objects += [MODELS["mistral-7b"].mntp.lora]
    for frozen in objects:
        name = dataclasses.fields(frozen)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, "changed")
    for table in (MODELS, VARIANTS, TASKS, SUITES, MIRROR_NAMES, HUB_REVISIONS):
        with pytest.raises(TypeError):
            table["new"] = None


# --------------------------------------------------------------------------- look-ups
@pytest.mark.parametrize(
    ("look_up", "kind", "valid"),
    [
        (get_model, "model", MODELS),
        (get_variant, "variant", VARIANTS),
        (get_task, "task", TASKS),
        (get_suite, "suite", SUITES),
        (get_pooling, "pooling", POOLINGS),
    ],
)
@pytest.mark.parametrize("name", ["nonsense", "", None, 3, ["mean"], "MEAN "])
def test_an_unknown_name_lists_the_valid_ones(
    look_up: Any, kind: str, valid: Any, name: object
) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown {kind} ") as error:
        look_up(name)
    assert repr(name) in str(error.value)
    listed = str(error.value).split("Valid: ")[1].removesuffix(".").split(", ")
    assert listed == list(valid)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'smollm2-135m'\?"):
        get_model("smolm2-135m")


def test_pooling_aliases() -> None:
    assert [get_pooling(p) for p in POOLINGS] == list(POOLINGS)
    assert get_pooling("eos_token") == "eos"
