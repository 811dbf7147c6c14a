"""Ablations: the grid is the paper's, what varies reaches the weights, and records say it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import training_help
from safetensors.numpy import load_file
from tiny_mirror import PAIRS

from llm2vec import ablations, corpora, loading, provenance, registry
from llm2vec.data import Source
from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.registry import MNTP, MODELS, SimCSE, get_task, get_variant
from llm2vec.registry_ablations import ABLATIONS, WIKITEXT, Ablation, Measured, get_ablations
from llm2vec.results import Record, read_record

MASKED = (Measured(WIKITEXT, "validation", 3),)
STS = (Measured("STSBenchmark", "validation", 20),)


# --------------------------------------------------------------------------- the grid
def test_masking_grid_is_the_papers() -> None:
    """Appendix D.1.1: 20, 40, 60, 80 and 90 %, BERT's and RoBERTa's style, on SICK-R."""
    runs = [run for run in ABLATIONS["mntp-masking"] if run.varied]
    points = {(run.varied["mask_probability"], run.varied["masking"]) for run in runs}
    assert points == {(p, style) for p in (0.2, 0.4, 0.6, 0.8, 0.9) for style in ("bert", "all")}
    assert {m.task for run in runs for m in run.measured} == {"SICK-R"}


def test_choices_are_made_on_validation_splits_alone() -> None:
    for group in ("mntp-lr", "simcse-lr", "simcse-after-mntp-lr"):
        assert {m.split for run in ABLATIONS[group] for m in run.measured} == {"validation"}


def test_published_learning_rates_are_part_of_the_grid() -> None:
    own = MODELS["smollm2-135m"]
    for group, settings in {"mntp-lr": own.mntp, "simcse-lr": own.simcse}.items():
        assert settings.learning_rate in {r.varied.get("learning_rate") for r in ABLATIONS[group]}


def test_every_run_has_a_name_and_values_of_its_own() -> None:
    runs = [run for group in ABLATIONS.values() for run in group]
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        stage = {"mntp": MNTP, "simcse": SimCSE}.get((get_variant(run.variant).stages or [""])[-1])
        names = {f.name for f in dataclasses.fields(stage)} if stage else set()
        assert run.base.keys() | run.varied.keys() <= names
        assert not run.base.keys() & run.varied.keys()
        assert bool(stage) == bool(run.varied)
        assert all(m.task == WIKITEXT or get_task(m.task).type == "STS" for m in run.measured)


def test_unknown_names_list_the_valid_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"mntp-lr.*simcse-padding"):
        get_ablations("mntp-rate")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'simcse-lr-0.001-20'"):
        get_ablations("simcse-lr", "simcse-lr-0.01-20")
    with pytest.raises(SettingError, match="minilm-l6 is an encoder"):
        ablations.plan("minilm-l6", get_ablations("mntp-lr"))


# --------------------------------------------------------------------------- small runs
@pytest.fixture
def small(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny decoder as model ``tiny``, texts and a mirror; returns the results folder."""
    model = dataclasses.replace(
        training_help.tiny_model(tiny_llama_dir),
        name="tiny", mntp=training_help.MNTP_SETTINGS, simcse=training_help.SIMCSE_SETTINGS,
    )  # fmt: skip
    for module in (registry, loading):
        monkeypatch.setattr(module, "MODELS", {"tiny": model})
    source = Source("texts", "1", "file", "own text")
    texts = training_help.TEXTS
    monkeypatch.setattr(corpora, "training_texts", lambda _: (texts, [source]))
    monkeypatch.setattr(corpora, "training_sentences", lambda _: (texts, [source]))
    monkeypatch.setattr(corpora, "wikitext", lambda split: (texts[::-1], source))
    folder = tmp_path / "mirror" / get_task("STSBenchmark").dataset
    folder.mkdir(parents=True)
    rows = [(f"{a} {i}", f"{b} {i}", s) for i in range(5) for a, b, s in PAIRS]
    frame = pd.DataFrame(rows, columns=["sentence1", "sentence2", "score"])
    frame.to_parquet(folder / "validation.parquet")
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return tmp_path / "results"


def mntp(measured: tuple[Measured, ...] = MASKED, **varied: object) -> Ablation:
    return Ablation("mntp-x", "bi-mntp", {"batch_size": 2}, {"steps": 2} | varied, measured)


def simcse(**varied: object) -> Ablation:
    return Ablation("simcse-x", "bi-simcse", {"batch_size": 4}, {"steps": 2} | varied, STS)


def run(small: Path, ablation: Ablation) -> tuple[Record, dict[str, np.ndarray]]:
    """The record of one run's first measurement and its adapter's weights."""
    (planned,) = ablations.plan("tiny", [ablation], "cpu")
    assert ablations.execute([planned], small) == len(ablation.measured)
    record = read_record(planned.key(ablation.measured[0]).path(small))
    return record, load_file(planned.folder / loading.ADAPTER_WEIGHTS)


@pytest.fixture
def numpy_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are bfloat16, which numpy lacks: read them through torch."""
    from safetensors.torch import load_file as load

    monkeypatch.setitem(
        globals(), "load_file", lambda f: {k: v.float().numpy() for k, v in load(f).items()}
    )


def differ(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    assert one.keys() == other.keys()
    return any(not np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (mntp, "learning_rate", (1e-2, 3e-2)),
        (mntp, "mask_probability", (0.2, 0.9)),
        (mntp, "masking", ("bert", "all")),
        (simcse, "learning_rate", (1e-2, 3e-2)),
        (simcse, "attention_dropout", (0.1, 0.3)),
        (simcse, "pool_over_padding", (False, True)),
        (simcse, "seed", (42, 43)),
    ],
)
def test_what_varies_reaches_the_weights_and_the_record(
    small: Path,
    numpy_bfloat16: None,
    make: Callable[..., Ablation],
    name: str,
    values: tuple[object, object],
) -> None:
    (first, one), (second, other) = (run(small, make(**{name: value})) for value in values)
    assert differ(one, other)
    assert first.adapters != second.adapters
    for record, value in ((first, values[0]), (second, values[1])):
        settings = record.hyperparameters
        assert settings["varied"] == {"steps": 2, name: value}
        assert settings["training"][name] == value
        assert settings["training"]["batch_size"] == (2 if make is mntp else 4)
        assert record.scores["training"]["final_loss"] > 0
        assert record.split == settings["measured"]["split"] == "validation"
    first.hyperparameters["training"].pop(name), second.hyperparameters["training"].pop(name)
    assert first.hyperparameters["training"] == second.hyperparameters["training"]


def test_a_longer_run_goes_on_and_ends_as_an_undisturbed_one(
    small: Path, numpy_bfloat16: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(small, mntp(steps=2))
    extended, weights = run(small, mntp(steps=4))
    (planned,) = ablations.plan("tiny", [mntp(steps=4)], "cpu")
    lines = (planned.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    shorter = planned.folder.with_name("steps-2")
    assert not (shorter / "run").exists() and (shorter / loading.ADAPTER_WEIGHTS).exists()

    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "elsewhere"))
    whole, undisturbed = run(tmp_path / "others", mntp(steps=4))
    assert not differ(weights, undisturbed)
    assert whole.score == extended.score


def test_what_is_done_is_left_alone_without_its_checkpoints(
    small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = ablations.plan("tiny", [simcse(), simcse(attention_dropout=0.1)], "cpu")
    assert ablations.execute(plan[:1], small) == 1
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "empty"))
    monkeypatch.setattr(ablations, "train", lambda run: pytest.fail("trained again"))
    assert ablations.execute(plan[:1], small) == 0
    *lines, total = ablations.overview(plan, small)
    assert [" done " in line for line in lines] == [True, False]
    assert total.startswith("about ")
    # another budget is another run, whatever its name
    other = dataclasses.replace(simcse(), base={"batch_size": 5})
    (changed,) = ablations.plan("tiny", [other], "cpu")
    assert changed.missing(small) == list(STS)


def test_groups_share_a_run(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = dataclasses.replace(simcse(), group="simcse-y")
    plans = ablations.plan("tiny", [simcse(), one], "cpu")
    assert plans[0].folder == plans[1].folder
    ablations.execute(plans[:1], small)
    before = (plans[0].folder / "metrics.jsonl").stat().st_mtime_ns
    assert ablations.execute(plans[1:], small) == 1
    assert (plans[0].folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_the_untrained_model_is_measured_without_adapters(small: Path) -> None:
    (planned,) = ablations.plan("tiny", [Ablation("mntp-x", "bi", {}, {}, MASKED + STS)], "cpu")
    assert ablations.execute([planned], small) == 2
    record = read_record(small / "raw/ablations/tiny/bi/none/wikitext@mntp-x-untrained.json")
    assert record.adapters == () and record.hyperparameters["training"] == {}
    assert record.metric == "masked_accuracy" and 0 <= record.score <= 1
    low, high = record.interval
    assert low < record.score < high or record.score in (0, 1)
    sts = read_record(small / "raw/ablations/tiny/bi/mean/STSBenchmark@mntp-x-untrained.json")
    assert sts.n == 20  # of 30: the drawn part


def test_a_record_tells_of_the_time_before_it_and_of_the_training(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, done = iter("123"), []
    capture, accuracy = ablations.capture_provenance, ablations.evaluate_masked_accuracy
    encode = ablations.LLM2Vec.encode_poolings

    def captured(*arguments: str) -> provenance.Provenance:
        assert not done, "measured before"
        return dataclasses.replace(capture(*arguments), started=next(times))

    def then(measure: Callable[..., object]) -> Callable[..., object]:
        return lambda *args, **options: (done.append(1), measure(*args, **options))[1]

    monkeypatch.setattr(
        provenance, "_tree", lambda: provenance._Tree("4" * 40, ("a.py",), "stated")
    )
    (planned,) = ablations.plan("tiny", [mntp(MASKED + STS)], "cpu")
    folder = ablations.train(planned)
    monkeypatch.setattr(ablations, "capture_provenance", captured)
    monkeypatch.setattr(ablations, "evaluate_masked_accuracy", then(accuracy))
    monkeypatch.setattr(ablations.LLM2Vec, "encode_poolings", then(encode))
    for measured, started in zip(MASKED + STS, "12", strict=True):
        record = ablations.measure(planned, measured, folder)
        assert record.provenance["started"] == started and done
        done.clear()
        training = record.scores["training"]
        assert (training["commit"], training["dirty"]) == ("4" * 40, True)
        assert training["commit_source"] == "stated"


def test_the_score_is_that_of_mteb(small: Path) -> None:
    """All pairs, so that mteb's own evaluation sees the same ones."""
    from llm2vec.encoder import load_encoder
    from llm2vec.mteb_tasks import evaluate_task
    from llm2vec.vectors import Vectors

    ablation = Ablation("mntp-x", "bi", {}, {}, (dataclasses.replace(STS[0], items=30),))
    (planned,) = ablations.plan("tiny", [ablation], "cpu")
    record = ablations.measure(planned, ablation.measured[0], None)
    encoder = load_encoder("tiny", "bi", device="cpu")
    task = dataclasses.replace(get_task("STSBenchmark"), split="validation")
    (expected,), _ = evaluate_task(Vectors(encoder, ("mean",), small / "vectors"), task)
    assert record.score == pytest.approx(expected.score, abs=1e-9)
    assert record.interval == pytest.approx((expected.interval.low, expected.interval.high))
