"""The paper's claims of sections 3 and 4, each with a test over scores.

    python -m analysis.claims [--results DIR]

A claim holds, fails, or was not run: on the paper's own numbers and on every model measured here,
over the tasks that are there (with their count). "No printed numbers": Figures 4 and 5 are drawn
in the paper but not tabulated. A claim says that one score is above another, so a test compares
means as they are, however small the difference; the points that part a verdict from the other one
stand beside it. Where a claim says "hardly", "high" or "larger", the limit is ours and stands in
its sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from analysis.claim_tests import (
    GAIN_TOLERANCE,
    HARDLY,
    LLM2VEC,
    MNTP,
    SIMILAR,
    SIZE_STEP,
    CrossTest,
    Test,
    above,
    above_encoders,
    above_on_each_task,
    above_under_every_pooling,
    best_under_every_pooling,
    gain,
    hardly_lower,
    larger_is_better,
    layers_as_expected,
    pooling_is,
    positive_nearer,
)
from analysis.collect import load_results
from analysis.evidence import collect_evidence, views
from analysis.paper import ECHO_POOLING
from llm2vec.console import run
from llm2vec.paths import results_dir
from llm2vec.registry import Model
from llm2vec.results import NONE


@dataclass(frozen=True)
class Claim:
    """``kinds``: evidence that it is tested on, the paper's first. ``across``: over models."""

    id: str
    section: str
    source: str
    text: str
    kinds: tuple[str, ...]
    test: Test | CrossTest
    applies: Callable[[Model], bool] = lambda model: model.kind == "decoder"
    across: bool = False


# --------------------------------------------------------------------------- the ledger
def _is(*architectures: str) -> Callable[[Model], bool]:
    return lambda model: model.kind == "decoder" and model.architecture in architectures


RESULTS = results_dir()
_SUBSET, _FULL = ("subset", "offline"), ("full", "offline")
CLAIMS = (
    Claim(
        "words-bi-llama", "3.1", "Table 4",
        "Bidirectional attention alone lowers all three word-level tasks for LLaMA models.",
        ("words",), above_on_each_task("uni", "bi"), _is("llama"),
    ),
    Claim(
        "words-bi-mistral", "3.1", "Table 4",
        "Mistral hardly suffers from bidirectional attention alone: it loses at most "
        f"{HARDLY:g} point in the mean of the three tasks.",
        ("words",), hardly_lower, _is("mistral"),
    ),
    Claim(
        "words-mntp", "3.1", "Table 4",
        "MNTP lifts the bidirectional model above the causal one on all three word-level tasks.",
        ("words",), above_on_each_task(MNTP, "uni"),
    ),
    Claim(
        "words-simcse", "3.1", "Table 4",
        "SimCSE after MNTP lowers all three word-level tasks.",
        ("words",), above_on_each_task(MNTP, LLM2VEC),
    ),
    Claim(
        "words-encoders", "3.1", "Table 4",
        "Even the causal models beat the encoders BERT and DeBERTa-v3 on every word-level task.",
        ("words",), above_encoders(
            ("uni", NONE), ("bert-large", "deberta-v3-large"), each_task=True),
        across=True,
    ),
    Claim(
        "pooling-uni", "3.2", "Table 5", "Weighted mean is the best pooling of a causal model.",
        _SUBSET, pooling_is(["uni"], "weighted_mean"),
    ),
    Claim(
        "pooling-llm2vec", "3.2", "Table 5",
        "Mean is the best pooling of LLM2Vec, with and without SimCSE.",
        _SUBSET, pooling_is([MNTP, LLM2VEC], "mean"),
    ),
    Claim(
        "pooling-eos", "3.2", "Table 5", "EOS is the worst pooling of a causal model.",
        _SUBSET, pooling_is(["uni"], "eos", best=False),
    ),
    Claim(
        "bi-llama", "3.2", "Table 5",
        "Bidirectional attention alone lowers the mean-pooled score of LLaMA models.",
        _SUBSET, above(("uni", "mean"), ("bi", "mean")), _is("llama"),
    ),
    Claim(
        "bi-mistral", "3.2, 4.2", "Table 5",
        "Mistral improves by bidirectional attention without any training, under every pooling.",
        _SUBSET, above_under_every_pooling("bi", "uni"), _is("mistral"),
    ),
    Claim(
        "bi-full", "3.2, 4.2", "Table 1",
        "On all tasks, bidirectional attention alone (mean) beats the causal model (weighted "
        "mean) for Mistral and falls behind it for LLaMA models.",
        _FULL, above(("bi", "mean"), ("uni", "weighted_mean"), reverse_for="llama"),
        _is("llama", "mistral"),
    ),
    Claim(
        "simcse-best", "3.2", "Table 5", "MNTP and SimCSE together are best under every pooling.",
        _SUBSET, best_under_every_pooling(
            LLM2VEC, ["uni", "bi", MNTP], ["uni-simcse", "bi-simcse"]),
    ),
    Claim(
        "gain", "3.2", "Table 5",
        "LLM2Vec beats the best causal pooling: by 49.8 % (S-LLaMA), 23.2 % (LLaMA-2) and 37.5 % "
        f"(Mistral), here within {GAIN_TOLERANCE:g}; for other models: it beats it.",
        _SUBSET, gain,
    ),
    Claim(
        "mntp-over-uni", "3.2", "Table 1",
        "Without SimCSE, LLM2Vec (mean) still beats the causal model (weighted mean).",
        _FULL, above((MNTP, "mean"), ("uni", "weighted_mean")),
    ),
    Claim(
        "echo", "3.2", "Table 1",
        "Without SimCSE, LLM2Vec beats Echo embeddings, except for Mistral, where Echo is ahead.",
        _FULL, above((MNTP, "mean"), ("echo", ECHO_POOLING), reverse_for="mistral"),
    ),
    Claim(
        "over-bert", "3.2", "Table 1", "LLM2Vec of every model beats BERT with SimCSE.",
        _FULL, above_encoders((LLM2VEC, "mean"), ("bert-base-simcse",)), across=True,
    ),
    Claim(
        "size", "3.2", "Table 1",
        f"Larger models score higher as LLM2Vec (a model of at least {SIZE_STEP:g} times the "
        "parameters).",
        _FULL, larger_is_better, across=True,
    ),
    Claim(
        "leakage", "4.1", "Figure 4",
        "After MNTP a sentence's beginning knows its ending: it is nearer to the same beginning "
        "before a paraphrased ending than before a diverging one (95 % interval above 0).",
        ("leakage",), positive_nearer,
    ),
    Claim(
        "layers", "4.2", "Figure 5",
        "Causal and bidirectional states of the same weights differ in LLaMA models and hardly in "
        f"Mistral (mean cosine below {SIMILAR:g} there, not here; the limit is ours).",
        ("layers",), layers_as_expected,
    ),
)  # fmt: skip


def evaluate(evidence: pd.DataFrame, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Every claim on every source, kind and model that has evidence for it.

    Columns: claim, source, kind, model (empty for a claim across models), verdict (holds, fails,
    not run), tasks, numbers, margin (points, negative where it fails). A claim without a row for
    the paper has no printed numbers.
    """
    everything = views(evidence)
    rows = []
    for claim in claims:
        for kind in claim.kinds:
            for source in ("paper", "results"):
                group = [v for v in everything if v.kind == kind and v.source == source]
                if claim.across:
                    tried = [("", claim.test(group))]
                else:
                    tried = [(v.model.name, claim.test(v)) for v in group
                             if claim.applies(v.model)]  # fmt: skip
                for model, outcome in tried:
                    if outcome is not None:
                        verdict = "holds" if outcome.holds else "fails"
                        rows.append((claim.id, source, kind, model, verdict, outcome.tasks,
                                     outcome.numbers, outcome.margin))  # fmt: skip
    columns = ["claim", "source", "kind", "model", "verdict", "tasks", "numbers", "margin"]
    return pd.DataFrame(rows, columns=columns)


def main(results: Annotated[Path, typer.Option(help="Results folder.")] = RESULTS) -> None:
    """Print the ledger of claims: the paper's own numbers, then every model measured here."""
    from analysis.tables_claims import ledger_text

    typer.echo(ledger_text(evaluate(collect_evidence(load_results(results)))))


if __name__ == "__main__":
    run(main)
