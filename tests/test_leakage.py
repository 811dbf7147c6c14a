"""Pooling leakage: only the tokens of A are pooled, and only attention can tell C from D."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import llm2vec.encoder
from llm2vec import leakage, representations
from llm2vec.attention import set_attention
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import AttentionError, DataError, RecordError, SettingError, UnknownNameError
from llm2vec.leakage import Cosines, Triple, TripleSet, find_prefix, find_prefixes, prefix_cosines
from llm2vec.provenance import capture_provenance
from llm2vec.registry import get_model, get_variant
from llm2vec.results import read_record

UNI, BI, ECHO = get_variant("uni"), get_variant("bi"), get_variant("echo")
TRIPLES = (
    Triple("1", "The quick brown fox", "jumps over the dog.", "leaps above the dog.", "sleeps."),
    Triple("2", "A language model that we know", "reads words.", "sees words.", "is lazy."),
    Triple("3", "Then the other dog", "sleeps.", "rests.", "runs from left to right again."),
)  # fmt: skip


def cosines_of(positive: list[float], negative: list[float]) -> Cosines:
    ids = tuple(str(i) for i in range(len(positive)))
    return Cosines(ids, np.array(positive), np.array(negative), 0, {})


def write_lines(file: Path, *lines: str) -> Path:
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def triple_line(**changes: Any) -> str:
    values = {"id": "x", "a": "It is", "b": "hot.", "c": "warm.", "d": "cold.", "topic": "t"}
    return json.dumps({k: v for k, v in (values | changes).items() if v is not ...})


# --------------------------------------------------------------------------- triples
def test_own_triples_are_complete() -> None:
    own = leakage.load_triples()
    assert len(own.triples) >= 100
    assert own.setting is None
    assert own.triples[0].sentences[0] == f"{own.triples[0].a} {own.triples[0].b}"


def test_own_file_is_read_and_named(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "mine.jsonl", triple_line(a=" It is ", topic=...), "", triple_line(id="y")
    )
    found = leakage.load_triples(file)
    assert found.setting == "mine"
    assert found.triples[0] == Triple("x", "It is", "hot.", "warm.", "cold.", "")
    assert [t.id for t in found.triples] == ["x", "y"]
    assert found.sha256 != leakage.load_triples().sha256
    assert found.source["source"] == "file"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{not json", "not JSON"),
        ('["a"]', "not a JSON object"),
        (triple_line(id="y", c=...), "field 'c'"),
        (triple_line(id="y", d="  "), "field 'd'"),
        (triple_line(id="y", b=3), "field 'b'"),
        (triple_line(id=7), "field 'id'"),
        (triple_line(), "id 'x' is taken by line 1"),
    ],
)
def test_bad_line_is_named_with_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    file = write_lines(tmp_path / "bad.jsonl", triple_line(), line)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        leakage.load_triples(file)
    assert f"{file}, line 2" in str(caught.value)


def test_missing_empty_and_binary_files_are_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for file, what in {
        tmp_path / "none.jsonl": "No such file",
        empty: "holds no triples",
        binary: "not UTF-8",
    }.items():
        with pytest.raises(DataError, match=what) as caught:
            leakage.load_triples(file)
        assert str(file) in str(caught.value)


# --------------------------------------------------------------------------- the span of A
@pytest.fixture(scope="session")
def tokenizers(make_tiny_llama: Any) -> dict[bool, Any]:
    """Byte-level BPE tokenizers that add BOS, or do not."""
    return {add_bos: make_tiny_llama(add_bos=add_bos).tokenizer for add_bos in (True, False)}


words = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
).map(" ".join)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("echo", [False, True])
@given(a=words, b=words)
@example(a="The fox's", b="'s")
@example(a="日本 é", b="é")
@example(a="so so so", b="so so")
def test_span_is_what_a_alone_gives(
    tokenizers: dict[bool, Any], add_bos: bool, echo: bool, a: str, b: str
) -> None:
    tokenizer = tokenizers[add_bos]
    prefix = find_prefix(tokenizer, f"{a} {b}", a, echo)
    # The second showing follows a blank, which byte-level BPE mostly merges with the word.
    alone = tokenizer(" " + a if echo else a, add_special_tokens=False)["input_ids"]
    alone = alone[tokenizer.decode(alone[:1]) == " " :]
    assert [prefix.ids[p] for p in prefix.positions] == alone
    assert not prefix.merged
    start = prefix.positions[0]
    assert prefix.positions == list(range(start, start + len(alone)))
    assert start > len(alone) if echo else start == add_bos


def test_echo_pools_the_second_occurrence(tokenizers: dict[bool, Any]) -> None:
    tokenizer = tokenizers[True]
    prefix = find_prefix(tokenizer, "The dog sleeps", "The dog", echo=True)
    before = tokenizer.decode(prefix.ids[: prefix.positions[0]], skip_special_tokens=True)
    assert "The dog sleeps" in before
    assert tokenizer.decode(prefix.ids[prefix.positions[-1] + 1 :]) == " sleeps"


def merging_tokenizer(*merges: tuple[str, str]) -> Any:
    """BPE over characters that does not stop at blanks."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", *" abcdefghijklmnopqrstuvwxyz.RT:\n"]  # the echo template's as well
    pieces = letters + ["".join(pair) for pair in merges]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, list(merges))), pad_token="<pad>"
    )


def test_token_across_the_boundary_is_left_out() -> None:
    tokenizer = merging_tokenizer(("t", " "), ("t ", "s"))
    prefix = find_prefix(tokenizer, "the cat sat", "the cat")
    assert tokenizer.convert_ids_to_tokens(prefix.ids)[6] == "t s"
    assert tokenizer.convert_ids_to_tokens([prefix.ids[p] for p in prefix.positions]) == list(
        "the ca"
    )
    assert prefix.merged


def test_trailing_blank_merges_no_character_of_b() -> None:
    tokenizer = merging_tokenizer(("t", " "))
    prefix = find_prefix(tokenizer, "the cat sat", "the cat")
    assert len(prefix.positions) == 7
    assert not prefix.merged


def test_leading_blank_merges_no_character_of_the_template() -> None:
    tokenizer = merging_tokenizer((" ", "t"))
    prefix = find_prefix(tokenizer, "the cat sat", "the cat", echo=True)
    pooled = tokenizer.convert_ids_to_tokens([prefix.ids[p] for p in prefix.positions])
    assert pooled == [" t", *"he cat"]
    assert not prefix.merged


def test_triple_pools_only_what_its_sentences_share(make_tiny_llama: Any) -> None:
    tokenizer = merging_tokenizer(("t", " "), ("t ", "s"))
    triple = Triple("m", "the cat", "sat.", "was sitting.", "ran.")
    prefixes = find_prefixes(tokenizer, triple)
    assert [p.positions for p in prefixes] == [[0, 1, 2, 3, 4, 5]] * 3
    assert all(p.merged for p in prefixes)
    backbone = make_tiny_llama().model.model
    found = prefix_cosines(backbone, tokenizer, [triple])
    assert found.merged == 1
    leakage.check_cosines(found, UNI)


def test_triple_whose_beginning_merges_away_is_named() -> None:
    tokenizer = merging_tokenizer(("a", " "), ("a ", "b"))
    with pytest.raises(DataError, match=r"'gone'.*no whole token"):
        find_prefixes(tokenizer, Triple("gone", "a", "bc.", "bd.", "be."))


def test_sentence_that_does_not_fit_is_named(tokenizers: dict[bool, Any]) -> None:
    with pytest.raises(DataError, match=r"'3'.*at most 20 fit"):
        find_prefixes(tokenizers[True], TRIPLES[2], limit=20)


# --------------------------------------------------------------------------- cosines
def alone_cosine(backbone: Any, tokenizer: Any, a: str, one: str, other: str) -> float:
    """The same by another way: one sentence at a time, A's tokens counted from the left."""
    vectors = []
    for sentence in (one, other):
        ids = tokenizer(sentence)["input_ids"]
        length = len(tokenizer(a, add_special_tokens=False)["input_ids"])
        first = len(ids) - len(tokenizer(sentence, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            states = backbone(torch.tensor([ids])).last_hidden_state[0]
        vectors.append(states[first : first + length].mean(0))
    return float(torch.cosine_similarity(*vectors, dim=0))


@pytest.mark.parametrize("add_bos", [True, False])
def test_cosines_equal_those_of_single_sentences(make_tiny_llama: Any, add_bos: bool) -> None:
    model, tokenizer = make_tiny_llama(add_bos=add_bos)
    set_attention(model.model, True)
    found = prefix_cosines(model.model, tokenizer, TRIPLES)
    for i, triple in enumerate(TRIPLES):
        q, positive, negative = triple.sentences
        expected = [
            alone_cosine(model.model, tokenizer, triple.a, q, s) for s in (positive, negative)
        ]
        assert [found.positive[i], found.negative[i]] == pytest.approx(expected, abs=1e-5)


def test_order_and_tokens_do_not_depend_on_batches(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, tokenizer = tiny_llama.model.model, tiny_llama.tokenizer
    set_attention(backbone, True)
    together = prefix_cosines(backbone, tokenizer, TRIPLES)
    monkeypatch.setattr(leakage, "TRIPLES_PER_BATCH", 1)
    done: list[int] = []
    apart = prefix_cosines(backbone, tokenizer, TRIPLES, progress=done.append)
    assert done == [1, 1, 1]
    np.testing.assert_allclose(apart.positive, together.positive, atol=1e-5)
    np.testing.assert_allclose(apart.negative, together.negative, atol=1e-5)
    real = sum(len(tokenizer(s)["input_ids"]) for t in TRIPLES for s in t.sentences)
    assert together.cost["tokens"] == apart.cost["tokens"] == real
    assert apart.cost["padding_tokens"] < together.cost["padding_tokens"]


@pytest.mark.parametrize("add_bos", [True, False])
def test_causal_states_never_feel_what_follows(make_tiny_llama: Any, add_bos: bool) -> None:
    model, tokenizer = make_tiny_llama(add_bos=add_bos)
    found = prefix_cosines(model.model, tokenizer, leakage.load_triples().triples[:24])
    np.testing.assert_allclose(found.positive, 1, atol=1e-5)
    np.testing.assert_allclose(found.negative, 1, atol=1e-5)
    leakage.check_cosines(found, UNI)
    with pytest.raises(AttentionError, match="every cosine is 1"):
        leakage.check_cosines(found, BI)


def test_bidirectional_and_echo_feel_what_follows(tiny_llama: Any) -> None:
    backbone, tokenizer = tiny_llama.model.model, tiny_llama.tokenizer
    echo = prefix_cosines(backbone, tokenizer, TRIPLES, echo=True)
    assert echo.positive.max() < 1 - 1e-4
    leakage.check_cosines(echo, ECHO)
    set_attention(backbone, True)
    both = prefix_cosines(backbone, tokenizer, TRIPLES)
    assert max(both.positive.max(), both.negative.max()) < 1 - 1e-4
    leakage.check_cosines(both, BI)
    with pytest.raises(AttentionError, match=r"triple '[123]': the beginning's states feel"):
        leakage.check_cosines(both, UNI)


def test_nan_is_not_taken_for_causal() -> None:
    with pytest.raises(AttentionError, match="triple '1'"):
        leakage.check_cosines(cosines_of([1, np.nan], [1, 1]), UNI)


def test_same_continuation_ranks_right_and_swapped_wrong(tiny_llama: Any) -> None:
    backbone, tokenizer = tiny_llama.model.model, tiny_llama.tokenizer
    set_attention(backbone, True)
    told = [Triple(t.id, t.a, t.b, t.b, t.d) for t in TRIPLES]
    swapped = [Triple(t.id, t.a, t.b, t.d, t.c) for t in told]
    scores = [
        leakage.summarise(prefix_cosines(backbone, tokenizer, t))["score"] for t in (told, swapped)
    ]
    assert scores == [1.0, 0.0]


def test_encoder_baseline_pools_neither_cls_nor_sep(make_tiny_llama: Any) -> None:
    from tokenizers import processors
    from transformers import BertConfig, BertModel

    tokenizer = make_tiny_llama(add_bos=False).tokenizer
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, initializer_range=0.3,
    )  # fmt: skip
    backbone = BertModel(config).eval()
    found = prefix_cosines(backbone, tokenizer, TRIPLES)
    q, positive, _ = TRIPLES[0].sentences
    with torch.no_grad():
        states = [
            backbone(torch.tensor([tokenizer(s)["input_ids"]])).last_hidden_state[0]
            for s in (q, positive)
        ]
    length = len(tokenizer(TRIPLES[0].a, add_special_tokens=False)["input_ids"])
    left, right = (s[1 : 1 + length].mean(0) for s in states)
    expected = float(torch.cosine_similarity(left, right, dim=0))
    assert found.positive[0] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - 1) > 1e-3


# --------------------------------------------------------------------------- statistics
def test_ties_count_half_and_have_no_evidence() -> None:
    found = leakage.summarise(cosines_of([1.0, 1.0, 1 - 4e-6], [1.0, 1 - 4e-6, 1.0]))
    assert found["score"] == 0.5
    assert found["interval"] == (0.5, 0.5)
    assert found["scores"]["ties"] == 3
    assert (found["scores"]["p"], found["scores"]["gap"]) == (1.0, 0.0)


def test_summary_of_known_cosines() -> None:
    found = leakage.summarise(cosines_of([0.9, 0.8, 0.7, 0.5], [0.5, 0.6, 0.7, 0.6]))
    assert found["score"] == 2.5 / 4
    scores = found["scores"]
    assert scores["cosine_positive"] == pytest.approx(2.9 / 4)
    assert scores["cosine_negative"] == pytest.approx(2.4 / 4)
    assert scores["gap"] == pytest.approx(0.5 / 4)
    # Ranks of |0.4|, |0.2|, |-0.1| are 3, 2, 1: the smaller signed sum is 1; exact p = 4 / 8.
    assert (scores["wilcoxon"], scores["p"]) == (1.0, pytest.approx(0.5))
    low, high = scores["gap_interval"]
    assert -0.1 <= low < scores["gap"] < high <= 0.4


def test_shuffled_roles_leave_no_gap() -> None:
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(0.9, 0.02, 200), rng.normal(0.8, 0.02, 200)
    real = leakage.summarise(cosines_of(positive, negative))
    assert real["score"] > 0.95
    assert real["scores"]["gap_interval"][0] > 0.09
    assert real["scores"]["p"] < 1e-10
    swap = rng.permutation(200) < 100
    shuffled = leakage.summarise(
        cosines_of(np.where(swap, negative, positive), np.where(swap, positive, negative))
    )
    low, high = shuffled["scores"]["gap_interval"]
    assert low < 0 < high
    assert shuffled["scores"]["p"] > 0.05


def test_interval_is_deterministic_and_needs_two_values() -> None:
    values = np.random.default_rng(0).normal(size=50)
    low, high = representations.mean_interval(values)
    assert (low, high) == representations.mean_interval(values)
    # Normal theory: mean +- 1.96 standard errors.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(50), rel=0.05)
    assert representations.mean_interval(values[:1]) is None


def test_cosine_golden() -> None:
    left, right = np.array([[1.0, 0], [3, 4], [1, 1]]), np.array([[0, 2.0], [3, 4], [-2, -2]])
    np.testing.assert_allclose(representations.cosine(left, right), [0, 1, -1])


# --------------------------------------------------------------------------- record
@pytest.fixture
def own_set(tmp_path: Path) -> TripleSet:
    fields = ("id", "a", "b", "c", "d")
    lines = [json.dumps({f: getattr(t, f) for f in fields}) for t in TRIPLES]
    return leakage.load_triples(write_lines(tmp_path / "mine.jsonl", *lines))


def test_record_and_resume(tiny_llama: Any, own_set: TripleSet, tmp_path: Path) -> None:
    model = get_model("smollm2-135m")
    set_attention(tiny_llama.model.model, True)
    found = prefix_cosines(tiny_llama.model.model, tiny_llama.tokenizer, own_set.triples)
    adapters = ("f" * 64,)
    record = leakage.make_record(
        found, model, BI, own_set, adapters=adapters, provenance=capture_provenance()
    )
    settings = leakage.settings_of(model, BI, own_set)

    def done(settings: dict = settings, adapters: tuple[str, ...] = adapters) -> bool:
        return representations.is_complete(record.key, tmp_path, ".parquet", settings, adapters)

    assert not done()
    path = representations.write_with_arrays(record, tmp_path, ".parquet", found.save)
    folder = tmp_path / "raw/pooling_leakage/smollm2-135m/bi/none"
    assert path == folder / "triples@mine.json"
    assert sorted(p.name for p in folder.iterdir()) == ["triples@mine.json", "triples@mine.parquet"]
    assert done()
    assert not done(adapters=())
    assert not done(settings=leakage.settings_of(model, BI, leakage.load_triples()))
    assert not done(settings=leakage.settings_of(model, BI, own_set, "bfloat16"))
    back = read_record(path)
    table = pd.read_parquet(folder / "triples@mine.parquet")
    assert list(table.columns) == ["id", "cos_pos", "cos_neg"]
    assert list(table["id"]) == ["1", "2", "3"]
    assert (table["cos_pos"] > table["cos_neg"]).mean() == back.score
    assert back.scores["gap"] == pytest.approx((table["cos_pos"] - table["cos_neg"]).mean())
    (folder / "triples@mine.parquet").unlink()
    assert not done()


def test_failed_write_leaves_neither_file(
    tiny_llama: Any, own_set: TripleSet, tmp_path: Path
) -> None:
    found = prefix_cosines(tiny_llama.model.model, tiny_llama.tokenizer, own_set.triples)
    record = leakage.make_record(
        found, get_model("smollm2-135m"), UNI, own_set, adapters=(), provenance=capture_provenance()
    )
    path = representations.write_with_arrays(record, tmp_path, ".parquet", found.save)
    array = path.with_suffix(".parquet")
    before = array.read_bytes()

    def full_disk(file: Path) -> None:
        file.write_bytes(before[:10])
        raise OSError(28, "No space left on device")

    with pytest.raises(RecordError, match="No space left"):
        representations.write_with_arrays(record, tmp_path, ".parquet", full_disk)
    assert array.read_bytes() == before, "the old arrays are still whole"
    assert not path.exists(), "no record vouches for them"
    assert [p.name for p in path.parent.iterdir()] == [array.name]


def test_departures_from_the_setting_are_named(own_set: TripleSet) -> None:
    model, own = get_model("smollm2-135m"), leakage.load_triples()
    assert leakage.key_of(model, UNI, own, "torch.float32").setting is None
    assert leakage.key_of(model, UNI, own, "bfloat16").setting == "bfloat16"
    assert leakage.key_of(model, UNI, own_set, "bfloat16").setting == "mine-bfloat16"


def test_file_name_that_cannot_name_a_record(tmp_path: Path) -> None:
    bad = leakage.load_triples(write_lines(tmp_path / "my own.jsonl", triple_line()))
    with pytest.raises(SettingError, match="my own"):
        leakage.key_of(get_model("smollm2-135m"), UNI, bad)


# --------------------------------------------------------------------------- the script
@pytest.fixture
def script(repo_root: Path) -> ModuleType:
    file = repo_root / "experiments" / "06_pooling_leakage.py"
    spec = importlib.util.spec_from_file_location("pooling_leakage", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_runs_once_unless_forced(
    script: ModuleType,
    tiny_llama: Any,
    own_set: TripleSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[str] = []

    def load(model: str, variant: str, **_: Any) -> LLM2Vec:
        loads.append(variant)
        return LLM2Vec(
            tiny_llama.model.model, tiny_llama.tokenizer, model=get_model(model), variant=UNI
        )

    monkeypatch.setattr(llm2vec.encoder, "load_encoder", load)
    arguments = {"variant": "uni", "triples": tmp_path / "mine.jsonl", "results": tmp_path}
    for force in (False, False, True):
        script.main("smollm2-135m", force=force, **arguments)
    assert loads == ["uni", "uni"]
    path = tmp_path / "raw/pooling_leakage/smollm2-135m/uni/none/triples@mine.json"
    assert read_record(path).score == 0.5


def test_script_refuses_names_that_do_not_fit(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        script.main("no-model", "uni", results=tmp_path)
    with pytest.raises(SettingError, match=r"minilm-l6 has no variant bi\. Valid: encoder\."):
        script.main("minilm-l6", "bi", results=tmp_path)
    assert not list(tmp_path.iterdir())
