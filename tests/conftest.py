"""Fixtures that every test may use: the data mirror and a tiny random decoder.

Tests never reach the hub. A test that needs the local data mirror asks for `mirror` and is
skipped, with the reason, where there is none.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from evaluation_help import Loader
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from llm2vec.encoder import LLM2Vec
    from llm2vec.mteb_tasks import Evaluation

# Both are read when the libraries are imported, hence here and not in a fixture.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A slow machine is no failure, and a failure must come back on the next run.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER_TEXT = (
    "The quick brown fox jumps over the lazy dog and then the other dog sleeps.",
    "A language model reads the words from left to right, one after another.",
)


class TinyLM(NamedTuple):
    """A random decoder in float32, in evaluation mode, with its tokenizer."""

    model: "LlamaForCausalLM"
    tokenizer: "PreTrainedTokenizerFast"


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The local data mirror: `LLM2VEC_DATA`, else ../shared/data beside the repository."""
    configured = os.environ.get("LLM2VEC_DATA")
    if configured:
        if not Path(configured).is_dir():
            pytest.fail(f"LLM2VEC_DATA={configured} is no folder: correct or unset it")
        return Path(configured)
    beside = ROOT.parent / "shared" / "data"
    if not beside.is_dir():
        pytest.skip("no data mirror: set LLM2VEC_DATA to a folder of datasets")
    return beside


@pytest.fixture
def mirror_env(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mirror, with `LLM2VEC_DATA` pointing at it during this test."""
    monkeypatch.setenv("LLM2VEC_DATA", str(mirror))
    return mirror


def tiny_tokenizer(add_bos: bool) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of about 300 tokens that can spell any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def make_tiny_llama() -> Callable[..., TinyLM]:
    """`make_tiny_llama(add_bos=True, seed=0, **config)`: a new tiny decoder at each call."""

    def make(add_bos: bool = True, seed: int = 0, **config: object) -> TinyLM:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = tiny_tokenizer(add_bos)
        defaults = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            # Far above the usual 0.02, so that each token visibly moves those that attend to it.
            "initializer_range": 0.3,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**defaults | config))
        return TinyLM(model.float().eval(), tokenizer)

    return make


@pytest.fixture
def tiny_llama(make_tiny_llama: Callable[..., TinyLM]) -> TinyLM:
    """A new random 2-layer Llama (hidden size 32) whose tokenizer adds BOS."""
    return make_tiny_llama()


@pytest.fixture(scope="session")
def tiny_llama_dir(
    make_tiny_llama: Callable[..., TinyLM], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny Llama and its tokenizer saved as a model folder; treat it as read-only."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    model, tokenizer = make_tiny_llama()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_encoder(make_tiny_llama: Callable[..., TinyLM]) -> "Callable[..., LLM2Vec]":
    """`make_encoder("uni", chat_of="mistral-7b", add_bos=True, seed=1, **arguments)`: an encoder.

    It stands around a tiny random Llama whose tokenizer, like SmolLM2's, adds no BOS by itself.
    """
    from llm2vec.attention import set_attention
    from llm2vec.encoder import LLM2Vec
    from llm2vec.registry import MODELS, VARIANTS

    def make(
        variant: str = "bi",
        chat_of: str = "smollm2-135m",
        add_bos: bool = False,
        seed: int = 0,
        **arguments: object,
    ) -> LLM2Vec:
        model, tokenizer = make_tiny_llama(add_bos=add_bos, seed=seed)
        set_attention(model.model, VARIANTS[variant].attention == "bidirectional")
        return LLM2Vec(
            model.model, tokenizer, model=MODELS[chat_of], variant=VARIANTS[variant], **arguments
        )

    return make


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone; the folder is not made."""
    monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def empty_mirror(tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror to fill, a cache of its own, and few draws for an interval."""
    from tiny_mirror import few_resamples

    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    monkeypatch.setattr("llm2vec.mteb_tasks.bootstrap_interval", few_resamples)
    return tmp_path / "mirror"


@pytest.fixture
def evaluate(tmp_path: Path) -> "Callable[..., list[Evaluation]]":
    """Score a task by its name with an encoder that stands in for ours."""
    from llm2vec.mteb_tasks import evaluate_task
    from llm2vec.registry import POOLINGS, get_task
    from llm2vec.vectors import Vectors

    def run(name: str, encoder: object, poolings: tuple[str, ...] = POOLINGS) -> "list[Evaluation]":
        vectors = Vectors(encoder, poolings, tmp_path / "vectors" / name)
        return evaluate_task(vectors, get_task(name))[0]

    return run


@pytest.fixture
def loader(empty_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Loader":
    """Folders of this test alone, with the data of three tasks, and a stand-in for the encoder."""
    from evaluation_help import TASK_NAMES, Loader
    from tiny_mirror import add_task

    from llm2vec.registry import get_task

    for name in TASK_NAMES:
        add_task(empty_mirror, get_task(name))
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("llm2vec.paths.shipped_adapters_dir", lambda: tmp_path / "shipped")
    stand_in = Loader()
    monkeypatch.setattr("llm2vec.encoder.load_encoder", stand_in)
    return stand_in
