"""What ``benchmarks/gpu.py`` measures: a random model of a known shape, and one step of each stage.

The repository's own classes at the registry's sizes; nothing is read from a disk or a network. What
counts as a useful operation stands in ``benchmarks/gpu.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from benchmarks.report import attention_flops, linear_flops
from llm2vec import gradcache
from llm2vec.attention import set_attention
from llm2vec.batching import iterate, token_batches
from llm2vec.heads import head_of
from llm2vec.lora import add_lora
from llm2vec.mntp import IGNORED, MNTPModel, mask_block
from llm2vec.pooling import mean_pool
from llm2vec.registry import MNTP, SimCSE
from llm2vec.simcse import SimCSEModel, contrastive_loss, parts_by_length, set_attention_dropout
from llm2vec.stage import Stage, seed_dropout

SEED = 0
# Of Mistral-7B-v0.1 but for its sliding window, of SmolLM2-135M, and of a toy for the tests.
SHAPES: dict[str, dict[str, Any]] = {
    "mistral-7b": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14_336, "vocab_size": 32_000,
    },
    "smollm2": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 256,
    },
}  # fmt: skip
MASK = 3  # ids 0 to 2 are the special ones, as in Mistral's vocabulary
SHORTEST, SENTENCE, SPREAD = 5, 32, 0.6  # tokens: clipped from below, mean, sigma of the logarithm


@dataclass(frozen=True)
class Sizes:
    """How much work: registry's batches on a GPU, less for the toy shape."""

    batch: int = MNTP().batch_size
    block: int = MNTP().block_size
    sentences: int = SimCSE().batch_size
    texts: int = 625  # of a quarter of a block to a whole one: 200,000 tokens
    side: int = 8192  # of the square product


TINY = Sizes(batch=32, block=16, sentences=16, texts=24, side=256)


@dataclass(frozen=True)
class Plan:
    """One configuration. ``blocks``: the tokens of one forward pass, counted in blocks.

    ``caching`` (SimCSE): every part runs twice, so that only one keeps its activations.
    """

    kind: str
    blocks: int
    compiled: bool = False
    checkpointing: bool = False
    caching: bool = False

    @property
    def name(self) -> str:
        more = [word for word in ("compiled", "checkpointing", "caching") if getattr(self, word)]
        return ", ".join([*more, f"{self.blocks} blocks a pass"])


@dataclass
class Work:
    """Something to repeat. ``step`` gives a number that must be finite; ``part``: its first pass.

    ``tokens`` are real ones, ``flops`` useful operations (see the module's description).
    """

    step: Callable[[int], float]
    part: Callable[[], Any]
    tokens: int
    padding: int
    flops: float
    stage: nn.Module


# --------------------------------------------------------------------------- operations
def training_flops(config: Mapping[str, Any], lengths: Sequence[int], labels: int = 0) -> float:
    """Useful operations of a forward and backward pass with LoRA over texts of these lengths."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    # Embeddings are frozen: no gradient passes the first layer's queries, keys and values.
    first = 2.0 * hidden * head * (heads + 2 * config["num_key_value_heads"])
    return (
        (2 * linear_flops(config) - first) * sum(lengths)
        + 3 * attention_flops(config, lengths)
        + 4.0 * hidden * config["vocab_size"] * labels
    )


def encoding_flops(config: Mapping[str, Any], lengths: Sequence[int]) -> float:
    """Useful operations of a forward pass without a head."""
    return linear_flops(config) * sum(lengths) + attention_flops(config, lengths)


# --------------------------------------------------------------------------- model
def random_model(shape: str, device: str) -> PreTrainedModel:
    """A random decoder of that shape in bfloat16, made where it will run; evaluation mode."""
    config = MistralConfig(
        **SHAPES[shape], sliding_window=None, max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    with torch.device("meta"):
        model = MistralForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    model.tie_weights()  # to_empty made two of what was one
    torch.manual_seed(SEED)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02) if weight.dim() > 1 else weight.fill_(1.0)
    # Its frequencies are buffers: empty now, and in float32 in a model that was loaded.
    rotary = model.base_model.rotary_emb
    model.base_model.rotary_emb = type(rotary)(config).to(device)
    return model.eval()


def prepared(stage: Stage, plan: Plan, dynamic: bool | None) -> Stage:
    if plan.checkpointing:
        stage.use_checkpointing()
    if plan.compiled:
        stage.compile_layers(dynamic)
    return stage.train()


class Update:
    """The optimizer's part of a step, as the training stages have it."""

    def __init__(self, stage: Stage, settings: MNTP | SimCSE) -> None:
        self.weights = [weight for weight in stage.parameters() if weight.requires_grad]
        self.most = settings.max_grad_norm
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )

    def __call__(self) -> None:
        nn.utils.clip_grad_norm_(self.weights, self.most)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


# --------------------------------------------------------------------------- what is measured
def mntp_work(model: PreTrainedModel, plan: Plan, sizes: Sizes) -> Work:
    """A step of masked next token prediction, its batch in micro-batches."""
    settings, vocabulary = MNTP(), model.config.vocab_size
    set_attention(model, True)
    lora = add_lora(model.base_model, settings.lora, settings.seed)
    stage = prepared(MNTPModel(lora, head_of(model), "bfloat16"), plan, dynamic=None)
    dice = np.random.default_rng(SEED)
    protected = np.arange(MASK + 1)
    blocks = [
        mask_block(
            dice.integers(MASK + 1, vocabulary, size=sizes.block), protected, dice, MASK,
            vocabulary, settings.mask_probability, settings.masking,
        )
        for _ in range(sizes.batch)
    ]  # fmt: skip
    ids, labels = (
        torch.from_numpy(np.stack(rows).astype(np.int64)).to(model.device)
        for rows in zip(*blocks, strict=True)
    )
    parts = list(zip(ids.split(plan.blocks), labels.split(plan.blocks), strict=True))
    count = int((labels != IGNORED).sum())
    update = Update(stage, settings)

    def run_part(number: int, part: int) -> torch.Tensor:
        seed_dropout(settings.seed, number * sizes.batch + part * plan.blocks)
        loss = stage(*parts[part]) / count
        loss.backward()
        return loss.detach()

    def step(number: int) -> float:
        loss = sum(run_part(number, part) for part in range(len(parts)))
        update()
        return float(loss)

    flops = training_flops(model.config.to_dict(), [sizes.block] * sizes.batch, count)
    return Work(step, lambda: run_part(0, 0), ids.numel(), 0, flops, stage)


def sentence_lengths(count: int, longest: int) -> list[int]:
    """Log-normal lengths with a mean of about ``SENTENCE`` tokens, clipped on both sides."""
    center = np.log(SENTENCE) - SPREAD**2 / 2
    drawn = np.random.default_rng(SEED).lognormal(center, SPREAD, count)
    return np.clip(drawn.round(), SHORTEST, longest).astype(int).tolist()


def simcse_work(model: PreTrainedModel, plan: Plan, sizes: Sizes) -> Work:
    """A step of SimCSE: both views of a batch of sentences in parts of like length."""
    settings = SimCSE()
    set_attention(model, True)
    set_attention_dropout(model.base_model, settings.attention_dropout)
    lora = add_lora(model.base_model, settings.lora, settings.seed)
    stage = prepared(SimCSEModel(lora, "bfloat16"), plan, dynamic=True)
    lengths = sentence_lengths(sizes.sentences, settings.max_length)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(MASK + 1, model.config.vocab_size, mask.shape).masked_fill(~mask, 0)
    inputs = {"input_ids": ids, "mask": mask, "span": mask}
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    most = plan.blocks * sizes.block
    parts = parts_by_length(lengths, most, fewest=most)
    update = Update(stage, settings)

    def encode(number: int, part: int) -> torch.Tensor:
        seed_dropout(settings.seed, number * sizes.sentences, part)
        rows, longest = parts[part], lengths[parts[part][0]]
        return stage(**{k: v[rows, :longest].repeat(2, 1) for k, v in inputs.items()})

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        pairs = [part.chunk(2) for part in vectors.split([2 * len(rows) for rows in parts])]
        first, second = (torch.cat([pair[view] for pair in pairs]) for view in (0, 1))
        return contrastive_loss(first, second, settings.scale)

    def step(number: int) -> float:
        loss = gradcache.backward(
            lambda part: encode(number, part), len(parts), loss_of,
            cache=plan.caching, no_sync=nullcontext,
        )  # fmt: skip
        update()
        return float(loss)

    tokens = 2 * sum(lengths)
    through = 2 * sum(len(rows) * lengths[rows[0]] for rows in parts)
    flops = training_flops(model.config.to_dict(), [*lengths, *lengths])
    part = lambda: encode(0, 0).sum().backward()  # noqa: E731 - one expression
    return Work(step, part, tokens, through - tokens, flops, stage)


def encode_work(model: PreTrainedModel, plan: Plan, sizes: Sizes) -> Work:
    """Encoding of texts of a quarter of a block to a whole one, mean pooling."""
    set_attention(model, True)
    body, most = model.base_model, plan.blocks * sizes.block
    dice = np.random.default_rng(SEED)
    texts = [
        dice.integers(MASK + 1, model.config.vocab_size, size=length)
        for length in dice.integers(sizes.block // 4, sizes.block + 1, size=sizes.texts)
    ]
    lengths = [len(text) for text in texts]
    batches = token_batches(lengths, most)

    def encode(chosen: Sequence[np.ndarray]) -> float:
        vectors = [mean_pool(b.hidden, b.mask) for b in iterate(body, chosen, 0, most)]
        return float(torch.cat(vectors).norm(dim=1).mean())

    first = [texts[index] for index in batches[0]]
    through = sum(len(rows) * lengths[rows[0]] for rows in batches)
    tokens, flops = sum(lengths), encoding_flops(model.config.to_dict(), lengths)
    # The warm-up, step 0, needs no more than the first batch.
    return Work(lambda number: encode(texts if number else first), lambda: encode(first),
                tokens, through - tokens, flops, body)  # fmt: skip


WORKS = {"mntp": mntp_work, "simcse": simcse_work, "encode": encode_work}
