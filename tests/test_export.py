"""Exported folders: the vectors of `encode` with the real SentenceTransformer, and by AutoModel."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from conftest import TOKENIZER_TEXT
from datasets import Dataset, DatasetDict
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from tokenizers import (
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    StableLmConfig,
    StableLmModel,
)

from llm2vec import LLM2Vec
from llm2vec import export as export_module
from llm2vec import loading as loading_module
from llm2vec.attention import check_attention, set_attention
from llm2vec.errors import AttentionError, SettingError
from llm2vec.export import ExportError, cosines, export, joins_blank, prompt_of, prompts
from llm2vec.model_card import Score, recorded_scores
from llm2vec.registry import MODELS, VARIANTS
from llm2vec.results import read_record

INSTRUCTION = "Find the other dog:"
TEXTS = [
    "The quick brown fox",
    "dog",
    " a blank before",
    "ends in blanks  ",
    "a language model reads 😀 words: from left to right, " * 2,
    "naïve\n\tcafé",
    "The brown dog. " * 3,
]
# Their first word is one token with the blank before it; see the model card.
AFTER_A_PROMPT = [
    "the other dog", "fox", "dog  ", "the words: from left to right, 😀 " * 3, "then\n\tcafé",
]  # fmt: skip
Make = Callable[..., LLM2Vec]


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As LLaMA-2, Mistral and Gemma have: blanks become part of the words, by a normalizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TOKENIZER_TEXT, *AFTER_A_PROMPT, INSTRUCTION], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", **names)


@pytest.fixture(scope="module")
def make(make_tiny_llama) -> Make:
    """`make(variant="bi", chat_of=None, add_bos=True, pooling="mean", tokens=(), ...)`."""

    def build(
        variant: str = "bi",
        chat_of: str | None = None,
        add_bos: bool = True,
        pooling: str = "mean",
        tokens: tuple[str, ...] = (),
        metaspace: bool = False,
    ) -> LLM2Vec:
        lm, tokenizer = make_tiny_llama(add_bos, vocab_size=320)
        tokenizer = metaspace_tokenizer() if metaspace else tokenizer
        tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
        # Whoever lets it in wraps every text in this.
        tokenizer.chat_template = "{% for m in messages %}<s>wrong{{ m['content'] }}{% endfor %}"
        set_attention(lm.model, VARIANTS[variant].attention == "bidirectional")
        chat = MODELS[chat_of].chat if chat_of else None
        model = replace(MODELS["smollm2-135m"], chat=chat)
        return LLM2Vec(
            lm.model, tokenizer, pooling, model=model, variant=VARIANTS[variant], max_length=128
        )

    return build


KINDS = {
    "bos": {},
    "no bos": {"add_bos": False},
    "causal": {"variant": "uni"},
    "eos": {"pooling": "eos"},
    "eos, no bos": {"pooling": "eos", "add_bos": False},
    "metaspace": {"metaspace": True},
    "chat": {"chat_of": "mistral-7b"},
    "chat, metaspace": {"chat_of": "llama-2-7b", "metaspace": True},
    "chat, eos": {"chat_of": "mistral-7b", "pooling": "eos"},
    "chat of tokens": {
        "chat_of": "llama-3-8b",
        "tokens": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    },
}


@pytest.fixture(scope="module", params=KINDS)
def exported(
    request: pytest.FixtureRequest, make: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LLM2Vec, Path, SentenceTransformer]:
    encoder = make(**KINDS[request.param])
    folder = export(encoder, tmp_path_factory.mktemp("export") / "encoder", scores=[])
    return encoder, folder, SentenceTransformer(str(folder), device="cpu")


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert cosines(ours, theirs).min() >= 0.9999
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


# --------------------------------------------------------------------------- vectors
@pytest.mark.parametrize("batch_size", [1, 4])
def test_plain_texts_have_the_vectors_of_encode(exported, batch_size: int) -> None:
    encoder, _, model = exported
    texts = TEXTS if not encoder.model.chat else AFTER_A_PROMPT
    ours = encoder.encode(texts, convert_to_numpy=True)
    same(ours, model.encode(texts, batch_size=batch_size))
    same(ours, model.encode_document(texts, batch_size=batch_size))
    same(ours[:1], model.encode([texts[0]]))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_prompts_are_read_and_not_pooled(exported, batch_size: int) -> None:
    encoder, _, model = exported
    pairs = [(INSTRUCTION, text) for text in AFTER_A_PROMPT]
    ours = encoder.encode(pairs, convert_to_numpy=True)
    theirs = model.encode(
        AFTER_A_PROMPT, prompt=prompt_of(encoder, INSTRUCTION), batch_size=batch_size
    )
    same(ours, theirs)
    plain = encoder.encode(AFTER_A_PROMPT, convert_to_numpy=True)
    assert np.abs(ours - plain).max() > 0.01


def test_no_chat_template_sneaks_in(exported) -> None:
    encoder, folder, model = exported
    ids = model.preprocess(["The quick brown fox"], prompt=prompts(encoder)["document"])
    (tokens,) = encoder.tokenize([("", "The quick brown fox")], encoder.pooling == "eos")
    assert ids["input_ids"][0].tolist() == tokens.ids
    assert AutoTokenizer.from_pretrained(folder).chat_template is None


def test_transformers_alone_keeps_the_attention(exported) -> None:
    encoder, folder, _ = exported
    causal = encoder.variant.attention == "causal"
    assert json.loads((folder / "config.json").read_text())["is_causal"] is causal
    check_attention(AutoModel.from_pretrained(folder).eval(), not causal)


def test_our_own_loader_restores_everything(exported) -> None:
    encoder, folder, _ = exported
    again = LLM2Vec.from_pretrained(folder, device="cpu")
    assert again.settings() == encoder.settings() | {"base_model": "encoder", "adapters": []}
    pairs = [*TEXTS, *((INSTRUCTION, text) for text in TEXTS)]
    np.testing.assert_array_equal(again.encode(pairs), encoder.encode(pairs))


def test_a_text_before_which_the_blank_stays_is_the_named_exception(make: Make, tmp_path) -> None:
    """The card says so; if this comes to agree, the card is to be corrected."""
    encoder = make()
    model = SentenceTransformer(str(export(encoder, tmp_path / "e", scores=[])), device="cpu")
    assert all(joins_blank(encoder, INSTRUCTION, text) for text in AFTER_A_PROMPT)
    for text in (" fox", "7 foxes", "\nfox"):
        assert not joins_blank(encoder, INSTRUCTION, text)
        ours = encoder.encode([(INSTRUCTION, text)], convert_to_numpy=True)
        theirs = model.encode([text], prompt=prompt_of(encoder, INSTRUCTION))
        assert cosines(ours, theirs)[0] < 0.9999
    assert "a blank that the tokenizer does not join" in (tmp_path / "e" / "README.md").read_text()


# --------------------------------------------------------------------------- mteb
@pytest.mark.parametrize(
    "load", [SentenceTransformer, SentenceTransformerEncoderWrapper], ids=["loaded", "by name"]
)
def test_mteb_takes_it_as_an_ordinary_model(make: Make, tmp_path: Path, load) -> None:
    encoder = make()
    folder = export(encoder, tmp_path / "e", scores=[])
    task = mteb.get_task("STSBenchmark")
    left, right = AFTER_A_PROMPT, [*AFTER_A_PROMPT[1:], "reads"]
    gold = [0.0, 5.0, 1.0, 3.0, 2.0]
    rows = {"sentence1": left, "sentence2": right, "score": gold}
    task.dataset, task.data_loaded = DatasetDict({"test": Dataset.from_dict(rows)}), True
    model = load(str(folder), device="cpu")
    done = mteb.evaluate(model, task, cache=None, co2_tracker=False)
    (score,) = done.task_results[0].scores["test"]
    instruction = "Retrieve semantically similar text:"
    one, other = (
        encoder.encode([(instruction, t) for t in side], convert_to_numpy=True)
        for side in (left, right)
    )
    expected = spearmanr(cosines(one, other), gold).statistic
    assert score["cosine_spearman"] == pytest.approx(expected, abs=1e-6)


def test_prompts_carry_the_papers_instructions(make: Make) -> None:
    found = prompts(make())
    assert found["STSBenchmark"] == "Retrieve semantically similar text: "
    assert found["SciFact-query"].endswith("support or refute the claim: ")
    assert found["SciFact-document"] == found["document"] == export_module.MARK
    assert not any(name.startswith("Offline") for name in found)


# --------------------------------------------------------------------------- card
def test_the_card_says_what_is_known(make: Make, tmp_path: Path) -> None:
    scores = [Score("STSBenchmark", "cosine_spearman", 0.61234, "data: mirror, exact")]
    card = (export(make(), tmp_path / "e", scores=scores) / "README.md").read_text()
    for part in (
        "base_model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name: sentence-transformers",
        "| STSBenchmark | cosine_spearman | 61.23 | data: mirror, exact |",
        "@inproceedings{behnamghader2024llm2vec",
        "- code: commit ",
        "| attention | bidirectional |",
    ):
        assert part in card
    assert str(tmp_path) not in card


def test_scores_are_those_of_the_same_weights_variant_and_pooling(make: Make, repo_root) -> None:
    encoder = make()
    found = {s.task: s.score for s in recorded_scores(encoder, repo_root / "results")}
    file = repo_root / "results/raw/mteb_subset/smollm2-135m/bi/mean/STSBenchmark.json"
    assert found["STSBenchmark"] == read_record(file).score
    encoder.adapters = ("another",)
    assert recorded_scores(encoder, repo_root / "results") == []


# --------------------------------------------------------------------------- refusals
def test_what_cannot_be_exported_is_refused_with_a_reason(make: Make, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"'weighted_mean'.*Valid: mean, eos"):
        export(make(pooling="weighted_mean"), tmp_path / "e")
    with pytest.raises(SettingError, match="'echo' cannot be exported"):
        export(make(variant="echo"), tmp_path / "e")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SettingError, match="is not empty"):
        export(make(), tmp_path / "full")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_an_export_that_differs_is_not_left_behind(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "_rules", lambda *_: [])
    with pytest.raises(ExportError, match="other vectors"):
        export(make(), tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def stable(make: Make) -> LLM2Vec:
    """A family that sdpa leaves causal without padding, whatever its configuration says."""
    encoder = make()
    config = StableLmConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = StableLmModel(config).eval()
    set_attention(backbone, True)
    return LLM2Vec(
        backbone, encoder.tokenizer, model=encoder.model, variant=encoder.variant, max_length=128
    )


def test_attention_that_needs_another_implementation_gets_it(
    stable: LLM2Vec, tmp_path: Path
) -> None:
    folder = export(stable, tmp_path / "e", scores=[])
    model = SentenceTransformer(str(folder), device="cpu")
    ours = stable.encode(TEXTS, convert_to_numpy=True)
    for batch_size in (1, 4):
        same(ours, model.encode(TEXTS, batch_size=batch_size))
    check_attention(AutoModel.from_pretrained(folder).eval(), True)
    assert "stays as `config.json` has it (eager)" in (folder / "README.md").read_text()
    with pytest.raises(AttentionError, match="no mask"):  # else the line in the card can go
        check_attention(AutoModel.from_pretrained(folder, attn_implementation="sdpa"), True)


def test_what_is_saved_keeps_its_attention_in_transformers_alone(
    stable: LLM2Vec, tmp_path: Path
) -> None:
    stable.save(tmp_path)
    check_attention(AutoModel.from_pretrained(tmp_path).eval(), True)


def test_what_computes_in_two_dtypes_is_not_saved(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """The folder would hold rounded weights and load them as float32."""
    mixed = LLM2Vec.from_pretrained(tiny_llama_dir, dtype="bfloat16-mixed", device="cpu")
    with pytest.raises(SettingError, match="load the encoder in float32 to export it"):
        mixed.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_attention_that_transformers_alone_does_not_keep_is_refused(
    stable: LLM2Vec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading_module, "KEEPS_THE_SWITCH", {})
    with pytest.raises(ExportError, match=r"does not keep the attention.*LLM2Vec\.save"):
        export(stable, tmp_path / "e")
    stable.save(tmp_path / "saved")
    again = LLM2Vec.from_pretrained(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), stable.encode(TEXTS), rtol=0, atol=1e-5)


# --------------------------------------------------------------------------- the real thing
@pytest.mark.slow
def test_smollm2_comes_back_with_its_vectors(tmp_path: Path) -> None:
    encoder = LLM2Vec.from_pretrained("smollm2-135m", device="cpu")
    folder = export(encoder, tmp_path / "e")
    model = SentenceTransformer(str(folder), device="cpu")
    texts = ["A fox sleeps.", "How do I reset my password?", "Ein längerer Satz " * 20]
    for batch_size in (1, 3):
        ours = encoder.encode(texts, convert_to_numpy=True)
        assert cosines(ours, model.encode(texts, batch_size=batch_size)).min() >= 0.9999
        ours = encoder.encode([(INSTRUCTION, text) for text in texts], convert_to_numpy=True)
        theirs = model.encode(texts, prompt=f"{INSTRUCTION} ", batch_size=batch_size)
        assert cosines(ours, theirs).min() >= 0.9999
    assert "| STSBenchmark | cosine_spearman | 11.81 |" in (folder / "README.md").read_text()
