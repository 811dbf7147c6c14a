"""Benchmarks: their arithmetic, and the way from a JSON file to a page. Nothing is timed here."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import (
    encode,
    grid_cost,
    peers,
    report,
    scale,
    texts,
    training,
    workers,
)
from benchmarks.grid_cost import Cost
from llm2vec.errors import DataError
from llm2vec.registry import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("__main__", "encode", "breakdown", "choices", "training", "scale", "grid_cost", "peers")
SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
}  # fmt: skip


# --------------------------------------------------------------------------- operations
def test_operations_of_smollm2_are_the_known_number() -> None:
    assert report.linear_flops(SMOLLM2) == pytest.approx(0.2124e9, rel=1e-3)


def test_operations_are_two_for_each_weight_of_a_real_model(make_tiny_llama: Any) -> None:
    model = make_tiny_llama().model.model
    weights = sum(p.numel() for name, p in model.layers.named_parameters() if "proj" in name)
    assert report.linear_flops(model.config.to_dict()) == 2 * weights


def test_operations_without_grouped_heads_and_named_width() -> None:
    """A configuration may leave out the width of a head and the number of key heads."""
    config = {k: v for k, v in SMOLLM2.items() if k not in ("head_dim", "num_key_value_heads")}
    layer = 4 * 576 * 576 + 3 * 576 * 1536
    assert report.linear_flops(config) == 2 * 30 * layer


def test_attention_grows_with_the_square_of_the_length() -> None:
    one, two = (report.attention_flops(SMOLLM2, [n]) for n in (100, 200))
    assert two == 4 * one == 4 * 4 * 30 * 576 * 100**2
    assert report.attention_flops(SMOLLM2, [100, 200]) == one + two
    # What docs/performance.md says of long texts.
    share = report.attention_flops(SMOLLM2, [300]) / (300 * report.linear_flops(SMOLLM2))
    assert share == pytest.approx(0.1, abs=0.02)


def test_shares_of_the_limit_count_real_tokens_and_attention() -> None:
    row = {"tokens": 100, "padding": 900, "seconds": 2.0}
    encode.add_shares(row, per_token=3, attention=60, limit=300)
    assert (row["share_of_limit"], row["share_with_attention"]) == (0.5, 0.6)


def run_of(seconds: float, **more: float) -> dict[str, float]:
    return {"tokens": 60, "padding": 4, "seconds": seconds, "cpu_seconds": 2 * seconds,
            "peak_mb": 100, "added_mb": 10} | more  # fmt: skip


def test_summary_takes_medians_and_the_largest_memory() -> None:
    found = report.summary([run_of(9), run_of(2, peak_mb=300), run_of(3, added_mb=50)])
    assert (found["seconds"], found["tokens_per_second"]) == (3, 20)
    assert found["tokens_per_cpu_second"] == 10
    assert (found["peak_mb"], found["added_mb"], found["padding"]) == (300, 50, 4)


def test_summary_refuses_runs_over_different_tokens() -> None:
    with pytest.raises(ValueError, match="different tokens"):
        report.summary([run_of(1), run_of(1, tokens=61)])


def test_steps_of_different_sizes_count_by_their_tokens() -> None:
    """One token a second in each step, whatever its size, is one token a second."""
    first = run_of(999, tokens=50, before_mb=400, peak_mb=900)  # warm-up: its time does not count
    steps = [run_of(n, tokens=n, before_mb=800, peak_mb=850) for n in (60, 20, 100)]
    found = training.steps_summary([first, *steps])
    assert found["tokens_per_second"] == pytest.approx(1)
    assert found["tokens"] == 60
    assert (found["peak_mb"], found["added_mb"]) == (900, 500)


def test_sides_that_train_differently_are_an_error() -> None:
    rows = [{"stage": "mntp", "dtype": "bfloat16", "side": side, "first_loss": loss}
            for side, loss in (("ours", 4.0), ("published", 4.2))]  # fmt: skip
    training.check_first_losses(rows, tolerance=0.3)
    training.check_first_losses([row | {"stage": "simcse"} for row in rows], tolerance=0.1)
    with pytest.raises(workers.WorkerError, match="first losses"):
        training.check_first_losses(rows, tolerance=0.1)


def test_a_linear_time_has_the_exponent_one() -> None:
    assert scale.fitted_exponent([10, 100, 1000], [1, 10, 100]) == pytest.approx(1)
    assert scale.fitted_exponent([10, 100, 1000], [1, 100, 10_000]) == pytest.approx(2)


def test_synthetic_texts_are_all_different_and_repeatable() -> None:
    made = list(scale.synthetic(3000))
    assert len(set(made)) == 3000
    assert made[:10] == list(scale.synthetic(10))


# --------------------------------------------------------------------------- turns and texts
@given(st.lists(st.sampled_from("abcd"), min_size=1, unique=True), st.integers(0, 9))
def test_every_side_has_its_turn_in_every_round(names: list[str], rounds: int) -> None:
    orders = list(workers.turns(names, rounds))
    assert len(orders) == rounds
    assert all(sorted(order) == sorted(names) for order in orders)
    if len(names) > 1 and rounds > 1:
        assert orders[0][0] != orders[1][0]


def words(text: str) -> int:
    return len(text.split())


def test_texts_fill_each_mix_and_none_is_too_long() -> None:
    articles = [[f"{'alpha ' * n}{a} {n}" for n in range(20, 200, 9)] for a in range(12)]
    sentences = [f"{'beta ' * (n % 20)}{n}" for n in range(400)]
    found = texts.choose(sentences, articles, words, tokens=900)
    for mix, wanted in zip(texts.MIXES, (900, 900, 1800), strict=True):
        chosen = found[mix]
        assert len(set(chosen)) == len(chosen)
        assert max(map(words, chosen)) <= texts.LONGEST
        assert sum(map(words, chosen)) >= wanted > sum(map(words, chosen[:-1]))
    assert all(words(text) in texts.SHORT_WORDS for text in found["short"])
    assert all(words(text) in texts.LONG for text in found["long"])
    lengths = [words(text) for text in found["mixed"]]
    assert min(lengths) in texts.SHORT_WORDS
    assert max(lengths) in texts.LONG
    assert found == texts.choose(sentences, articles, words, tokens=900)


def test_mixed_texts_come_by_their_shares() -> None:
    pools = (["P"] * 3, list("abcdef"), list("uvwxyz"))
    assert "".join(texts.in_turn(pools, (1, 2, 3))) == "PabuvwPcdxyz"


def test_passages_keep_every_paragraph_once() -> None:
    articles = [["a " * 300, "b " * 150, "c " * 100], ["d " * 20]]
    joined = list(texts.passages(articles, words))
    assert [words(p) for p in joined] == [450, 100, 20]


# --------------------------------------------------------------------------- workers
ECHO = """
import sys
sys.path.insert(0, "benchmarks")
from protocol import Line, serve
def add(a, b):
    print("a library says something")
    return {"sum": a + b}
serve({"add": add, "fail": lambda: {}["gone"]})
"""


def test_a_worker_answers_through_what_libraries_print() -> None:
    with workers.started({"side": [sys.executable, "-c", ECHO]}) as sides:
        assert sides["side"].ask("add", a=2, b=3) == {"sum": 5}
        with pytest.raises(workers.WorkerError, match="side 'side' failed: KeyError: 'gone'"):
            sides["side"].ask("fail")


def test_a_dead_worker_is_named_with_what_it_said() -> None:
    code = "import sys; sys.exit('no such module today')"
    with (
        workers.started({"peer": [sys.executable, "-c", code]}) as sides,
        pytest.raises(workers.WorkerError, match=r"'peer' failed.*no such module today"),
    ):
        sides["peer"].ask("load")


def test_tokens_are_counted_however_a_model_is_called(make_tiny_llama: Any) -> None:
    import inspect

    import torch

    from benchmarks.protocol import Counter

    model = make_tiny_llama().model
    parameters = set(inspect.signature(model.forward).parameters)
    counter = Counter(model)
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=mask)
        model.forward(ids)
    assert counter.take() == {"tokens": 18, "padding": 2}
    assert counter.take() == {"tokens": 0, "padding": 0}
    assert set(inspect.signature(model.forward).parameters) == parameters


def test_the_whole_goes_on_after_a_benchmark_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    from benchmarks import __main__ as whole

    asked = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        return subprocess.CompletedProcess(command, int(command[-1] == "benchmarks.training"))

    monkeypatch.setattr(whole.subprocess, "run", run)
    monkeypatch.setattr(whole, "has_gpu", lambda: True)
    with pytest.raises(whole.BenchmarkError, match=r"not measured: training;"):
        whole.main(None)
    assert asked == [*(f"benchmarks.{name}" for name in whole.NAMES), "analysis.build"]
    asked.clear()
    whole.main(["scale"])
    assert asked == ["benchmarks.scale", "analysis.build"]


# --------------------------------------------------------------------------- peers
def test_the_older_formats_hold_the_same_model() -> None:
    config = {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}, "dtype": "float32"}
    assert peers.older_config(config) == {"rope_theta": 1e5, "torch_dtype": "float32"}
    tokenizer = {"model": {"merges": [["a", "b"], "c d"], "vocab": {}}, "version": "1.0"}
    changed = peers.older_tokenizer(tokenizer)
    assert changed == {"model": {"merges": ["a b", "c d"], "vocab": {}}, "version": "1.0"}
    assert tokenizer["model"]["merges"][0] == ["a", "b"]
    settings = {"backend": "tokenizers", "tokenizer_class": "New", "pad_token": "<pad>"}
    assert peers.older_tokenizer_config(settings) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>",
        "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip


def test_peers_of_another_version_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "folder", lambda: tmp_path)
    assert peers.peer_python() is None
    (tmp_path / peers.STAMP).write_text(json.dumps(["llm2vec==0.1"]))
    assert peers.peer_python() is None
    (tmp_path / peers.STAMP).write_text(json.dumps(peers.requirements()))
    assert peers.peer_python().is_relative_to(tmp_path)
    assert "llm2vec==0.2.3" in peers.requirements()
    assert "+" not in peers.requirements()[0]


# --------------------------------------------------------------------------- the grid
CALL = [("", "aaaa"), ("", "bb"), ("", "aaaa"), ("", "c")]
LENGTHS = {("", "aaaa"): 4, ("", "bb"): 2, ("", "c"): 1}


def test_the_published_way_runs_repeated_texts_again_for_each_pooling() -> None:
    # One batch of four rows: 4 x 4 tokens twice, 4 x 5 with EOS; real ones 11, 11 and 15.
    assert grid_cost.published_cost([CALL], LENGTHS) == Cost(52, 52 - 37)
    assert grid_cost.published_cost([CALL, CALL], LENGTHS).tokens == 104


def test_the_published_batches_hold_32_texts_by_characters() -> None:
    call = [("", "x" * n) for n in range(70)]
    batches = grid_cost.published_batches(call)
    assert [len(batch) for batch in batches] == [32, 32, 6]
    assert batches[0][0] == 69
    assert sorted(i for batch in batches for i in batch) == list(range(70))


def test_here_a_text_runs_once_in_the_passes_of_its_attention() -> None:
    # Three different texts in one batch, as wide as the longest: 3 x 5 with EOS, 3 x 4 without.
    assert grid_cost.cost_here([CALL, CALL], LENGTHS, VARIANTS["uni"]) == Cost(15, 5)
    assert grid_cost.cost_here([CALL], LENGTHS, VARIANTS["bi"]) == Cost(27, 10)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=90))
def test_here_never_costs_more_than_the_published_way(lengths: list[int]) -> None:
    pairs = [("", "x" * n) for n in lengths]
    known = {pair: len(pair[1]) for pair in pairs}
    published = grid_cost.published_cost([pairs], known)
    ours = grid_cost.cost_here([pairs], known, VARIANTS["uni"])
    assert ours.tokens - ours.padding <= published.tokens - published.padding
    assert min(ours.padding, published.padding) >= 0


def test_without_any_data_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_cost, "recorded", lambda names: iter(()))
    with pytest.raises(DataError, match="LLM2VEC_DATA"):
        grid_cost.table5(["STSBenchmark"], None)


# --------------------------------------------------------------------------- command lines
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_wait_for_torch_only_when_they_measure(name: str) -> None:
    """What a program imports at its top is light, so that --help is there at once."""
    tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    heavy = ("torch", "transformers", "mteb", "peft", "sentence_transformers", "tokenizers")
    assert not {name.split(".")[0] for name in top} & set(heavy)


def test_help_of_every_program_lists_its_options(repo_root: Path) -> None:
    """In one process, which also shows that none of them needs torch for it."""
    import subprocess

    code = (
        "import runpy, sys\n"
        f"for name in {PROGRAMS!r}:\n"
        "    sys.argv = [name, '--help']\n"
        "    try:\n"
        "        runpy.run_module(f'benchmarks.{name}', run_name='__main__')\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, name\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repo_root
    )
    assert done.returncode == 0, done.stderr
    for option in ("--only", "--tokens", "--sentences", "--texts", "--suite"):
        assert option in done.stdout


def test_peer_scripts_import_nothing_of_this_repository() -> None:
    """They run where another package has the name llm2vec."""
    for file in ("protocol", "published_encode", "published_training"):
        tree = ast.parse((ROOT / "benchmarks" / f"{file}.py").read_text(encoding="utf-8"))
        found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        found |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not {name for name in found if name.split(".")[0] in ("benchmarks", "analysis")}
        own = {name for name in found if name.split(".")[0] == "llm2vec"}
        assert own <= {"llm2vec", "llm2vec.loss.HardNegativeNLLLoss", "llm2vec.models"}, file


def test_sides_are_found_by_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "peer_python", lambda: None)
    assert list(encode.commands(tmp_path)) == ["ours", "sentence-transformers"]
    monkeypatch.setattr(encode, "peer_python", lambda: Path("peer/python"))
    assert list(encode.commands(tmp_path)) == ["ours", "published", "sentence-transformers"]
