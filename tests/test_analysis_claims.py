"""The ledger of claims: what the paper's numbers say, and that verdicts follow the numbers."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import synthetic_records as made

from analysis.claims import CLAIMS, Claim, evaluate
from analysis.collect import Results, load_results
from analysis.evidence import collect_evidence, views
from analysis.notebooks import notebooks
from analysis.tables_claims import claims_of, claims_table, ledger_text
from llm2vec.registry import MODELS, SUITES
from llm2vec.results import NONE

UNPRINTED = {"leakage", "layers"}
PAPER_MODELS = {"s-llama-1.3b", "llama-2-7b", "mistral-7b", "llama-3-8b"}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("results")
    made.add_everything(root)
    return load_results(root)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return collect_evidence(load_results(tmp_path_factory.mktemp("empty")))


def verdict(evidence: pd.DataFrame, claim: str, model: str, kind: str, source="paper") -> str:
    found = evaluate(evidence)
    found = found[(found["claim"] == claim) & (found["model"] == model)
                  & (found["kind"] == kind) & (found["source"] == source)]  # fmt: skip
    assert len(found) <= 1
    return "not run" if found.empty else found["verdict"].iloc[0]


def change(evidence: pd.DataFrame, score: float, **where: str) -> pd.DataFrame:
    """The evidence with one number replaced."""
    mask = pd.Series(True, index=evidence.index)
    for column, value in where.items():
        mask &= evidence[column] == value
    assert mask.sum() == 1
    changed = evidence.copy()
    changed.loc[mask, "score"] = score
    return changed


# --------------------------------------------------------------------------- the paper
def test_every_claim_holds_on_the_papers_own_numbers(paper: pd.DataFrame) -> None:
    outcomes = evaluate(paper)
    assert set(outcomes["source"]) == {"paper"}
    assert set(outcomes["verdict"]) == {"holds"}
    assert {claim.id for claim in CLAIMS} - set(outcomes["claim"]) == UNPRINTED


def test_claims_are_tested_on_all_models_that_the_paper_prints(paper: pd.DataFrame) -> None:
    outcomes = evaluate(paper)
    models = outcomes.groupby("claim")["model"].agg(set).to_dict()
    assert models["echo"] == PAPER_MODELS
    assert models["words-mntp"] == PAPER_MODELS - {"llama-3-8b"}
    assert models["words-bi-llama"] == {"s-llama-1.3b", "llama-2-7b"}
    assert models["bi-mistral"] == {"mistral-7b"}
    assert models["size"] == {""}
    assert set(outcomes[outcomes["kind"] == "subset"]["tasks"]) == {"15 of 15 tasks"}
    assert set(outcomes[outcomes["kind"] == "full"]["tasks"]) == {"56 of 56 tasks"}


def test_numbers_of_the_text_stand_beside_the_verdict(paper: pd.DataFrame) -> None:
    outcomes = evaluate(paper).set_index(["claim", "model"])
    assert "+49.8 % (printed +49.8 %)" in outcomes.loc[("gain", "s-llama-1.3b"), "numbers"]
    assert "chunking -1.87; ner +0.62" in outcomes.loc[("words-bi-mistral", "mistral-7b"),
                                                       "numbers"]  # fmt: skip


def test_claim_ids_are_unique_and_each_says_its_place() -> None:
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.section[0] in "34"
        assert claim.source.split()[0] in ("Table", "Figure")
        assert claim.text.endswith(".")


FLIPS = [
    # claim, model, kind, the number that is changed, its new value
    ("words-bi-llama", "s-llama-1.3b", "words", ("bi", NONE, "pos"), 90.90),
    ("words-bi-mistral", "mistral-7b", "words", ("bi", NONE, "chunking"), 83.0),
    ("words-mntp", "llama-2-7b", "words", ("bi-mntp", NONE, "ner"), 96.0),
    ("words-simcse", "mistral-7b", "words", ("bi-mntp-simcse", NONE, "ner"), 97.19),
    ("words-encoders", "s-llama-1.3b", "words", ("uni", NONE, "chunking"), 85.0),
    ("pooling-uni", "mistral-7b", "subset", ("uni", "mean", "mean"), 44.5),
    ("pooling-llm2vec", "s-llama-1.3b", "subset", ("bi-mntp-simcse", "eos", "mean"), 60.0),
    ("pooling-eos", "llama-2-7b", "subset", ("uni", "mean", "mean"), 30.0),
    ("bi-llama", "llama-2-7b", "subset", ("bi", "mean", "mean"), 50.0),
    ("bi-mistral", "mistral-7b", "subset", ("bi", "weighted_mean", "mean"), 44.0),
    ("bi-full", "llama-3-8b", "full", ("bi", "mean", "mean"), 44.0),
    ("bi-full", "mistral-7b", "full", ("bi", "mean", "mean"), 42.0),
    ("simcse-best", "mistral-7b", "subset", ("bi-simcse", "mean", "mean"), 60.6),
    ("gain", "s-llama-1.3b", "subset", ("uni", "mean", "mean"), 37.0),
    ("mntp-over-uni", "llama-2-7b", "full", ("bi-mntp", "mean", "mean"), 44.5),
    ("echo", "llama-2-7b", "full", ("echo", "mean", "mean"), 45.8),
    ("echo", "mistral-7b", "full", ("echo", "mean", "mean"), 49.0),
    ("over-bert", "s-llama-1.3b", "full", ("bi-mntp-simcse", "mean", "mean"), 45.0),
    ("size", "mistral-7b", "full", ("bi-mntp-simcse", "mean", "mean"), 49.0),
]


@pytest.mark.parametrize(("claim", "model", "kind", "cell", "score"), FLIPS)
def test_flipping_a_number_flips_the_verdict(
    paper: pd.DataFrame, claim: str, model: str, kind: str, cell: tuple, score: float
) -> None:
    variant, pooling, task = cell
    changed = change(paper, score, source="paper", kind=kind, model=model, variant=variant,
                     pooling=pooling, task=task)  # fmt: skip
    across = next(c for c in CLAIMS if c.id == claim).across
    name = "" if across else model
    assert verdict(paper, claim, name, kind) == "holds"
    assert verdict(changed, claim, name, kind) == "fails"


def test_every_claim_of_printed_numbers_is_flipped_above() -> None:
    assert {flip[0] for flip in FLIPS} | UNPRINTED == {claim.id for claim in CLAIMS}


# --------------------------------------------------------------------------- records
def test_records_are_judged_over_their_tasks_with_the_count(full: Results) -> None:
    outcomes = evaluate(collect_evidence(full))
    own = outcomes[outcomes["source"] == "results"].set_index(["claim", "kind", "model"])
    assert own.loc[("pooling-uni", "subset", "smollm2-135m"), "tasks"] == "8 of 15 tasks"
    assert own.loc[("pooling-uni", "offline", "smollm2-135m"), "tasks"] == "15 of 15 tasks"
    assert own.loc[("mntp-over-uni", "full", "s-llama-1.3b"), "tasks"] == "15 of 56 tasks"
    assert own.loc[("echo", "full", "smollm2-135m"), "verdict"] == "holds"
    assert own.loc[("leakage", "leakage", "smollm2-135m"), "tasks"] == "60 triples"
    # S-LLaMA's invented gain is not the printed one, on the 15 tasks that the paper has.
    assert own.loc[("gain", "subset", "s-llama-1.3b"), "verdict"] == "fails"
    assert own.loc[("gain", "subset", "smollm2-135m"), "verdict"] == "holds"


def test_only_common_tasks_are_compared(tmp_path: Path) -> None:
    axes = ("mteb_subset", "smollm2-135m")
    for task, echo, mntp in (("STS17", 0.5, 0.6), ("SICK-R", 0.5, 0.6)):
        made.add(tmp_path, *axes, "echo", "mean", task, echo)
        made.add(tmp_path, *axes, "bi-mntp", "mean", task, mntp)
    made.add(tmp_path, *axes, "echo", "mean", "STSBenchmark", 0.99)
    outcomes = evaluate(collect_evidence(load_results(tmp_path)))
    row = outcomes[(outcomes["claim"] == "echo") & (outcomes["source"] == "results")].iloc[0]
    assert (row["verdict"], row["tasks"]) == ("holds", "2 of 56 tasks")
    assert row["numbers"] == "Bi + MNTP / Mean 60.00 > Echo / Mean 50.00"


def test_marked_data_are_no_evidence(tmp_path: Path) -> None:
    data = {"id": "x", "revision": "1", "source": "mirror", "status": "reconstructed"}
    for variant in ("echo", "bi-mntp"):
        made.add(tmp_path, "mteb_subset", "smollm2-135m", variant, "mean",
                 "TwentyNewsgroupsClustering", 0.5, dataset=data)  # fmt: skip
    evidence = collect_evidence(load_results(tmp_path))
    assert set(evidence["source"]) == {"paper"}


def test_leakage_and_layers_flip(full: Results) -> None:
    evidence = collect_evidence(full)
    leak = {"source": "results", "kind": "leakage", "model": "smollm2-135m", "task": "gap_low"}
    assert verdict(evidence, "leakage", "smollm2-135m", "leakage", "results") == "holds"
    changed = change(evidence, -0.001, variant="bi-mntp", **leak)
    assert verdict(changed, "leakage", "smollm2-135m", "leakage", "results") == "fails"
    for model, level in (("smollm2-135m", 0.9), ("mistral-7b", 0.7)):
        assert verdict(evidence, "layers", model, "layers", "results") == "holds"
        changed = change(evidence, level, source="results", kind="layers", model=model)
        assert verdict(changed, "layers", model, "layers", "results") == "fails"


def test_larger_means_at_least_twice_the_parameters(tmp_path: Path) -> None:
    sizes = [MODELS[name].parameters for name in ("llama-2-7b", "llama-3-8b")]
    assert sizes[1] < 2 * sizes[0]
    for model, score in (("llama-2-7b", 0.6), ("llama-3-8b", 0.5)):
        for task in SUITES["short6"]:
            axes = ("mteb_subset", model, "bi-mntp-simcse", "mean", task)
            made.add(tmp_path, *axes, score)
    evidence = collect_evidence(load_results(tmp_path))
    assert verdict(evidence, "size", "", "full", "results") == "not run"
    for task in SUITES["short6"]:
        axes = ("mteb_subset", "smollm2-135m", "bi-mntp-simcse", "mean", task)
        made.add(tmp_path, *axes, 0.55)
    evidence = collect_evidence(load_results(tmp_path))
    assert verdict(evidence, "size", "", "full", "results") == "fails"


# --------------------------------------------------------------------------- from file to ledger
WORDS, SUITE, ANALYSES = "word_probing", "mteb_subset", ("pooling_leakage", "layer_similarity")
LLM2VEC = ("bi-mntp-simcse", "mean", "STS17")
# Scores of one task under which every claim holds: variant, then pooling or task.
SENTENCES = {
    "uni": (0.20, 0.30, 0.35), "bi": (0.15, 0.25, 0.26), "bi-mntp": (0.30, 0.45, 0.40),
    "uni-simcse": (0.40, 0.50, 0.52), "bi-simcse": (0.41, 0.51, 0.50),
    "bi-mntp-simcse": (0.50, 0.60, 0.55), "echo": (0.25, 0.42, 0.41),
}  # fmt: skip
PER_WORD = {"uni": 0.90, "bi": 0.85, "bi-mntp": 0.92, "bi-mntp-simcse": 0.91}
# What a bidirectional Mistral does without training, and where Echo is ahead.
MISTRAL = {"bi": (0.22, 0.40, 0.38), "echo": (0.25, 0.46, 0.41)}
RECORD_FLIPS = [
    # claim, model (none: across models), the record that is changed, its new score
    ("words-bi-llama", "smollm2-135m", (WORDS, "bi", NONE, "pos"), 0.99),
    ("words-bi-mistral", "mistral-7b", (WORDS, "bi", NONE, "ner"), 0.50),
    ("words-mntp", "smollm2-135m", (WORDS, "bi-mntp", NONE, "ner"), 0.89),
    ("words-simcse", "mistral-7b", (WORDS, "bi-mntp-simcse", NONE, "chunking"), 0.93),
    ("words-encoders", "", (WORDS, "uni", NONE, "pos"), 0.70),
    ("pooling-uni", "smollm2-135m", (SUITE, "uni", "mean", "STS17"), 0.36),
    ("pooling-llm2vec", "mistral-7b", (SUITE, "bi-mntp", "weighted_mean", "STS17"), 0.46),
    ("pooling-eos", "smollm2-135m", (SUITE, "uni", "eos", "STS17"), 0.31),
    ("bi-llama", "smollm2-135m", (SUITE, "bi", "mean", "STS17"), 0.31),
    ("bi-mistral", "mistral-7b", (SUITE, "bi", "eos", "STS17"), 0.19),
    ("bi-full", "mistral-7b", (SUITE, "uni", "weighted_mean", "STS17"), 0.41),
    ("bi-full", "smollm2-135m", (SUITE, "bi", "mean", "STS17"), 0.36),
    ("simcse-best", "smollm2-135m", (SUITE, "uni-simcse", "eos", "STS17"), 0.51),
    ("gain", "smollm2-135m", (SUITE, *LLM2VEC), 0.34),
    ("mntp-over-uni", "smollm2-135m", (SUITE, "bi-mntp", "mean", "STS17"), 0.34),
    ("echo", "smollm2-135m", (SUITE, "echo", "mean", "STS17"), 0.46),
    ("echo", "mistral-7b", (SUITE, "echo", "mean", "STS17"), 0.44),
    ("over-bert", "", (SUITE, *LLM2VEC), 0.29),
    ("size", "", (SUITE, *LLM2VEC), 0.70),
    ("leakage", "smollm2-135m", (ANALYSES[0], "bi-mntp", NONE, "triples"), -0.01),
    ("layers", "smollm2-135m", (ANALYSES[1], "bi", NONE, "wikipedia"), 0.90),
    ("layers", "mistral-7b", (ANALYSES[1], "bi", NONE, "wikipedia"), 0.70),
]  # fmt: skip


def add_one(root: Path, experiment: str, model: str, cell: tuple[str, str, str], score: float):
    """One record; of pooling leakage, ``score`` is the lower end of the gap's interval."""
    more = {}
    if experiment == ANALYSES[0]:
        more = {"scores": {"gap": score + 0.01, "gap_interval": [score, score + 0.02]}}
        score = 0.6
    made.add(root, experiment, model, *cell, score, **more)


@pytest.fixture(scope="module")
def all_hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of one task a kind under which every claim holds for every model."""
    root = tmp_path_factory.mktemp("holding")
    for model, higher in (("smollm2-135m", 0.0), ("mistral-7b", 0.05)):
        own = SENTENCES | (MISTRAL if higher else {})
        for variant, scores in own.items():
            for pooling, score in zip(("eos", "mean", "weighted_mean"), scores, strict=True):
                lift = higher if (variant, pooling) == LLM2VEC[:2] else 0.0
                add_one(root, SUITE, model, (variant, pooling, "STS17"), score + lift)
        for variant, score in PER_WORD.items():
            for task in ("chunking", "ner", "pos"):
                close = 0.899 if higher and variant == "bi" else score
                add_one(root, WORDS, model, (variant, NONE, task), close)
        add_one(root, ANALYSES[0], model, ("bi-mntp", NONE, "triples"), 0.01)
        level = 0.9 if higher else 0.5
        add_one(root, ANALYSES[1], model, ("bi", NONE, "wikipedia"), level)
    add_one(root, SUITE, "bert-base-simcse", ("encoder", NONE, "STS17"), 0.30)
    for task in ("chunking", "ner", "pos"):
        add_one(root, WORDS, "bert-large", ("encoder", NONE, task), 0.80)
    return root


def ledger_of(root: Path) -> dict[str, str]:
    """What the table of the README says of our records, by claim."""
    return {row[0]: row[5] for row in claims_table(load_results(root)).rows}


def test_every_claim_holds_on_records_that_are_made_so(all_hold: Path) -> None:
    ledger = ledger_of(all_hold)
    assert set(ledger) == {claim.id for claim in CLAIMS}
    for claim, text in ledger.items():
        assert "holds" in text and "fails" not in text, f"{claim}: {text}"
    assert {flip[0] for flip in RECORD_FLIPS} == set(ledger), "every claim is flipped below"


@pytest.mark.parametrize(("claim", "model", "record", "score"), RECORD_FLIPS)
def test_a_flipped_record_flips_the_verdict_in_the_ledger(
    all_hold: Path, tmp_path: Path, claim: str, model: str, record: tuple, score: float
) -> None:
    """From the file on disk to the cell of the table, and back."""
    shutil.copytree(all_hold, tmp_path, dirs_exist_ok=True)
    experiment, *cell = record
    add_one(tmp_path, experiment, model or "smollm2-135m", tuple(cell), score)
    name = MODELS[model].display if model else "across models"
    texts = [part for part in ledger_of(tmp_path)[claim].split("; ") if part.startswith(name)]
    assert len(texts) == 1 and texts[0].startswith(f"{name}: fails"), texts
    before = [part for part in ledger_of(all_hold)[claim].split("; ") if part.startswith(name)]
    plain = [re.sub(r" by \d+\.\d\d", "", text) for text in (before[0], texts[0])]
    assert plain[0].replace(": holds", ": fails") == plain[1], "and nothing but the verdict"


def test_a_flipped_number_of_the_paper_shows_in_the_ledger(tmp_path: Path) -> None:
    """Were a printed number copied wrongly, its claim would fail for all to see."""
    results = load_results(tmp_path / "empty")
    shutil.copytree(results.paper, tmp_path / "paper")
    file = tmp_path / "paper" / "table4.csv"
    text = file.read_text()
    assert text.count("90.51") == 1
    file.write_text(text.replace("90.51", "80.51"))
    changed = replace(results, paper=tmp_path / "paper")
    cells = {row[0]: row[4] for row in claims_table(changed).rows}
    assert cells["words-mntp"] == "fails (S-LLaMA-1.3B; 2 of 3 hold)"
    assert cells["words-bi-llama"] == "holds (2 of 2 models)"


# --------------------------------------------------------------------------- the ledger
def test_ledger_shows_failures_missing_runs_and_unprinted_numbers(paper: pd.DataFrame) -> None:
    changed = change(paper, 45.8, source="paper", kind="full", model="llama-2-7b", variant="echo",
                     task="mean")  # fmt: skip
    text = ledger_text(evaluate(changed))
    assert "paper      fails LLaMA-2-7B, 56 of 56 tasks: Bi + MNTP / Mean 45.70 < Echo" in text
    assert text.count("no printed numbers") == len(UNPRINTED)
    assert text.count("reproduced not run") == len(CLAIMS)


def test_table_of_claims_counts_models_and_tasks(full: Results) -> None:
    table = claims_table(full)
    cells = {row[0]: row for row in table.rows}
    assert len(cells) == len(CLAIMS)
    assert cells["echo"][4] == "holds (4 of 4 models)"
    assert cells["layers"][4] == "no printed numbers"
    assert re.search(
        r"SmolLM2-135M: holds by \d+\.\d\d \(MTEB subset, 8 of 15 tasks\)", cells["pooling-eos"][5]
    )
    assert " by " not in cells["layers"][5], "points decide nothing there"
    assert cells["words-encoders"][5] == "not run"


MARGINS = {
    # by the scores above, times 100: of the least favourable comparison
    "words-bi-llama": 5, "words-mntp": 2, "words-simcse": 1, "pooling-uni": 5, "pooling-llm2vec": 5,
    "pooling-eos": 10, "bi-llama": 5, "bi-full": 10, "simcse-best": 3, "gain": 25,
    "mntp-over-uni": 10, "echo": 3,
}  # fmt: skip


def test_a_margin_is_what_parts_a_verdict_from_the_other_one(all_hold: Path) -> None:
    outcomes = evaluate(collect_evidence(load_results(all_hold)))
    own = outcomes[(outcomes["source"] == "results") & (outcomes["model"] == "smollm2-135m")]
    found = own.dropna(subset="margin").groupby("claim")["margin"].min()
    assert found.to_dict() == pytest.approx(MARGINS)
    told = outcomes.dropna(subset="margin")
    assert ((told["margin"] >= 0) == (told["verdict"] == "holds")).all()
    close = outcomes[(outcomes["claim"] == "words-bi-mistral") & (outcomes["source"] == "paper")]
    assert close["margin"].tolist() == pytest.approx([1 - 0.47], abs=0.005)


@pytest.mark.parametrize(("claim", "cell", "score", "margin"), [
    ("pooling-uni", ("uni", "mean", "STS17"), 0.36, -1),
    ("simcse-best", ("uni-simcse", "eos", "STS17"), 0.54, -4),
    ("echo", ("echo", "mean", "STS17"), 0.46, -1), ("gain", LLM2VEC, 0.33, -2),
])  # fmt: skip
def test_the_margin_of_a_failure_is_negative(
    all_hold: Path, tmp_path: Path, claim: str, cell: tuple, score: float, margin: int
) -> None:
    root = shutil.copytree(all_hold, tmp_path / "changed")
    add_one(root, SUITE, "smollm2-135m", cell, score)
    results = load_results(root)
    rows = evaluate(collect_evidence(results))
    own = rows[(rows["claim"] == claim) & (rows["model"] == "smollm2-135m")]
    assert own.loc[own["source"] == "results", "margin"].tolist() == pytest.approx([margin])
    shown = {row[0]: row[5] for row in claims_table(results).rows}[claim]
    assert f"SmolLM2-135M: fails by {-margin}.00 (" in shown


def test_a_notebook_shows_the_claims_of_its_kind_with_our_numbers(all_hold: Path) -> None:
    results = load_results(all_hold)
    kinds = list(dict.fromkeys(claim.kinds[0] for claim in CLAIMS))
    tables = {kind: claims_of(results, kind) for kind in kinds}
    shown = [row[0] for table in tables.values() for row in table.rows]
    assert sorted(shown) == sorted(claim.text for claim in CLAIMS)
    (row,) = tables["leakage"].rows
    assert row[1] == "no printed numbers" and "+0.0100" in row[3]
    used = {kind for file in notebooks() for kind in kinds
            if f'claims_of(results, \\"{kind}\\")' in file.read_text()}  # fmt: skip
    assert used == set(kinds)


def test_a_claim_that_fails_in_the_paper_says_for_which_model(
    full: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    from analysis import tables_claims

    evidence = collect_evidence(full)
    changed = change(evidence, 99.0, source="paper", kind="full", model="llama-2-7b",
                     variant="echo", task="mean")  # fmt: skip
    monkeypatch.setattr(tables_claims, "outcomes_of", lambda results: evaluate(changed))
    cells = {row[0]: row[4] for row in claims_table(full).rows}
    assert cells["echo"] == "fails (LLaMA-2-7B; 3 of 4 hold)"


def test_views_keep_models_and_suites_apart(full: Results) -> None:
    found = {(view.source, view.kind, view.model.name) for view in views(collect_evidence(full))}
    assert ("results", "offline", "smollm2-135m") in found
    assert ("paper", "words", "smollm2-135m") not in found
    assert isinstance(CLAIMS[0], Claim)
