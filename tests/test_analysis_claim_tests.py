"""What a claim compares: a mean with a mean, a printed number with the tasks it is printed of."""

from pathlib import Path

import pandas as pd
import pytest
import synthetic_records as made

from analysis.claims import evaluate
from analysis.collect import load_results
from analysis.evidence import collect_evidence
from llm2vec.registry import POOLINGS, SUITES
from llm2vec.results import NONE


def outcome_of(root: Path, claim: str, kind: str) -> pd.Series:
    rows = evaluate(collect_evidence(load_results(root)))
    mask = (rows["claim"] == claim) & (rows["kind"] == kind) & (rows["source"] == "results")
    (row,) = (row for _, row in rows[mask].iterrows())
    return row


def test_a_gain_on_the_offline_suite_is_not_held_against_the_printed_one(tmp_path: Path) -> None:
    """The suite has 15 tasks, too, but they are not those of MTEB."""
    assert len(SUITES["offline"]) == len(SUITES["subset"])
    for suite, experiment in (("offline", "offline_suite"), ("subset", "mteb_subset")):
        for task in SUITES[suite]:
            made.add(tmp_path, experiment, "s-llama-1.3b", "bi-mntp-simcse", "mean", task, 0.6)
            for pooling in POOLINGS:
                made.add(tmp_path, experiment, "s-llama-1.3b", "uni", pooling, task, 0.5)
    offline, mteb = (outcome_of(tmp_path, "gain", kind) for kind in ("offline", "subset"))
    assert (offline["verdict"], offline["tasks"]) == ("holds", "15 of 15 tasks")
    assert "printed" not in offline["numbers"] and offline["margin"] == pytest.approx(10)
    assert mteb["verdict"] == "fails" and "+20.0 % (printed +49.8 %)" in mteb["numbers"]
    assert pd.isna(mteb["margin"])


def test_over_bert_compares_means_as_the_paper_does(tmp_path: Path) -> None:
    for task, own, bert in (("STS17", 0.60, 0.40), ("SICK-R", 0.50, 0.55)):
        made.add(tmp_path, "mteb_full", "mistral-7b", "bi-mntp-simcse", "mean", task, own)
        made.add(tmp_path, "mteb_full", "bert-base-simcse", "encoder", NONE, task, bert)
    row = outcome_of(tmp_path, "over-bert", "full")
    assert (row["verdict"], row["tasks"]) == ("holds", "2 of 56 tasks")
    assert row["margin"] == pytest.approx(55 - 47.5)
    made.add(tmp_path, "mteb_full", "bert-base-simcse", "encoder", NONE, "STS17", 0.57)
    row = outcome_of(tmp_path, "over-bert", "full")
    assert (row["verdict"], row["margin"]) == ("fails", pytest.approx(55 - 56))


def test_words_of_encoders_are_compared_on_every_task(tmp_path: Path) -> None:
    for task, own, bert in (("ner", 0.90, 0.60), ("pos", 0.80, 0.81)):
        made.add(tmp_path, "word_probing", "mistral-7b", "uni", NONE, task, own)
        made.add(tmp_path, "word_probing", "bert-large", "encoder", NONE, task, bert)
    row = outcome_of(tmp_path, "words-encoders", "words")
    assert (row["verdict"], row["margin"]) == ("fails", pytest.approx(-1))
    made.add(tmp_path, "word_probing", "bert-large", "encoder", NONE, "pos", 0.77)
    row = outcome_of(tmp_path, "words-encoders", "words")
    assert (row["verdict"], row["margin"]) == ("holds", pytest.approx(3))


def test_a_larger_model_wins_by_the_least_of_its_leads(tmp_path: Path) -> None:
    for model, score in (("smollm2-135m", 0.40), ("s-llama-1.3b", 0.45), ("mistral-7b", 0.48)):
        made.add(tmp_path, "mteb_full", model, "bi-mntp-simcse", "mean", "STS17", score)
    row = outcome_of(tmp_path, "size", "full")
    assert (row["verdict"], row["margin"]) == ("holds", pytest.approx(3))
