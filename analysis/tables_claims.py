"""The ledger of claims as tables and as text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from analysis.claims import CLAIMS, Claim, evaluate
from analysis.collect import Results
from analysis.evidence import collect_evidence
from analysis.render import NOT_RUN, Origin, Table, number
from analysis.tables import display_model

NOT_PRINTED = "no printed numbers"
_KINDS = {
    "words": "words", "subset": "MTEB subset", "full": "MTEB", "offline": "offline suite",
    "leakage": "triples", "layers": "paragraphs",
}  # fmt: skip


def _paper(claim: Claim, outcomes: pd.DataFrame) -> str:
    """``holds (3 of 3 models)``, ``fails (LLaMA-3-8B)``, or why there is no verdict."""
    rows = outcomes[(outcomes["claim"] == claim.id) & (outcomes["source"] == "paper")]
    if rows.empty:
        return NOT_PRINTED
    failed = [display_model(model) for model in rows[rows["verdict"] == "fails"]["model"]]
    if claim.across:
        return rows["verdict"].iloc[0]
    if failed:
        return f"fails ({', '.join(failed)}; {len(rows) - len(failed)} of {len(rows)} hold)"
    return f"holds ({len(rows)} of {len(rows)} models)" if len(rows) > 1 else "holds (1 model)"


def _reproduced(claim: Claim, outcomes: pd.DataFrame) -> str:
    """``SmolLM2-135M: holds by 3.35 (MTEB subset, 6 of 15 tasks)``, for every model measured."""
    rows = outcomes[(outcomes["claim"] == claim.id) & (outcomes["source"] == "results")]
    texts: dict[str, list[str]] = {}
    for row in rows.itertuples():
        kind = "" if claim.kinds[0] in ("leakage", "layers") else f"{_KINDS[row.kind]}, "
        texts.setdefault(row.model, []).append(f"{_decided(row)} ({kind}{row.tasks})")
    parts = [f"{display_model(model) or 'across models'}: {', '.join(found)}"
             for model, found in texts.items()]  # fmt: skip
    return "; ".join(parts) or "not run"


def _decided(row: Any) -> str:
    """``fails by 0.07``: the verdict and the points that part it from the other one."""
    return row.verdict if pd.isna(row.margin) else f"{row.verdict} by {number(abs(row.margin))}"


@lru_cache(maxsize=4)
def outcomes_of(results: Results) -> pd.DataFrame:
    """Every claim's verdicts on the paper's numbers and on these results."""
    return evaluate(collect_evidence(results))


def claims_table(results: Results) -> Table:
    """One row per claim: the paper's own numbers, then the models measured here."""
    outcomes = outcomes_of(results)
    rows = [
        [claim.id, claim.section, claim.text, claim.source, _paper(claim, outcomes),
         _reproduced(claim, outcomes)]
        for claim in CLAIMS
    ]  # fmt: skip
    run = outcomes[outcomes["source"] == "results"]["claim"].nunique()
    return Table(
        "claims", "The paper's claims, tested",
        ["Claim", "Section", "In our words", "Source", "Paper's own numbers", "Reproduced"],
        rows, "llplpp",
        pd.DataFrame(rows, columns=["claim", "section", "text", "source", "paper", "reproduced"]),
        Origin.of(results.scores), f"{run} of {len(CLAIMS)} claims tested on records",
        notes=("By: points in the means (per task for words) that part the verdict from the other "
               "one, in the least favourable comparison. Less than a point says little: other "
               "texts, or another seed of a training, move more.",),
    )  # fmt: skip


def claims_of(results: Results, kind: str) -> Table:
    """The claims of one kind of evidence, with the numbers that ours rest on: for a notebook."""
    outcomes = outcomes_of(results)
    own = outcomes[outcomes["source"] == "results"]
    rows = []
    for claim in (claim for claim in CLAIMS if claim.kinds[0] == kind):
        numbers = own.loc[own["claim"] == claim.id, "numbers"]
        rows.append([claim.text, _paper(claim, outcomes), _reproduced(claim, outcomes),
                     "; ".join(numbers) or NOT_RUN])  # fmt: skip
    header = ["Claim, in our words", "The paper's numbers", "Reproduced", "Our numbers"]
    data = pd.DataFrame(rows, columns=["text", "paper", "reproduced", "numbers"])
    return Table(f"claims_{kind}", "What the ledger says", header, rows, "pppp", data,
                 Origin.of(results.scores))  # fmt: skip


def claims_numbers(results: Results) -> Table:
    """One row per verdict, with the numbers it rests on."""
    outcomes = outcomes_of(results)
    rows = [
        [row.claim, "paper" if row.source == "paper" else "reproduced",
         display_model(row.model) or "across models", row.verdict,
         f"{_KINDS[row.kind]}: {row.tasks}", row.numbers]
        for row in outcomes.itertuples()
    ]  # fmt: skip
    return Table(
        "claims_numbers", "The numbers behind the claims",
        ["Claim", "Source", "Model", "Verdict", "Tasks", "Numbers"], rows, "lllllp", outcomes,
        Origin.of(results.scores), f"{len(outcomes)} verdicts",
    )  # fmt: skip


def ledger_text(outcomes: pd.DataFrame, claims: Sequence[Claim] = CLAIMS) -> str:
    """The ledger for a terminal: each claim, then one line per verdict with its numbers."""
    lines = []
    for claim in claims:
        lines += [f"{claim.id} (section {claim.section}, {claim.source})", f"  {claim.text}"]
        rows = outcomes[outcomes["claim"] == claim.id]
        for source, missing in (("paper", NOT_PRINTED), ("results", "not run")):
            found = rows[rows["source"] == source]
            name = "paper" if source == "paper" else "reproduced"
            if found.empty:
                lines.append(f"    {name:10} {missing}")
            for row in found.itertuples():
                model = display_model(row.model) or "across models"
                lines.append(f"    {name:10} {row.verdict:5} {model}, {row.tasks}: {row.numbers}")
        lines.append("")
    return "\n".join(lines)
