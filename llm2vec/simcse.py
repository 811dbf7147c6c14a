"""Step 3 of the recipe: unsupervised contrastive learning, SimCSE (paper 2.2, B.2, D.1.2).

Two views of a sentence differ by dropout alone; the other sentences of the batch are the
negatives; loss: cross entropy of cosine similarities times 20. MNTP's LoRA is merged into the
backbone before, then a new one is trained. Run by ``experiments/02_train_simcse.py``.

As the published code: 0.3 is dropout of the attention weights (with LoRA's own 0.05 on top), no
chat format around the sentences, no instruction. Deviations on purpose: both views go through
the model in one pass, sentences of like length together; the mean is taken over the text alone.
The published trainer takes it over the padding too; ``pool_over_padding`` does as it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from llm2vec import gradcache, training_text
from llm2vec.adapters import adapter_folder, adapter_hash, check_origin
from llm2vec.architectures import fitted
from llm2vec.attention import set_attention
from llm2vec.batching import token_batches
from llm2vec.errors import DataError, SettingError
from llm2vec.loading import DTYPES, load_backbone, merge_adapter
from llm2vec.lora import add_lora
from llm2vec.pooling import mean_pool
from llm2vec.prompts import Prompt, Tokens, tokenize
from llm2vec.registry import Model, SimCSE, Variant
from llm2vec.runs import RunFolder
from llm2vec.stage import (
    Options,
    Stage,
    hash_samples,
    run_settings,
    seed_dropout,
    storage_dtype,
)
from llm2vec.training import StageTrainer, save_adapter, train

PART_TOKENS = 4096  # of a forward pass at most: with 16,384 half of what a GPU computes is padding


# --------------------------------------------------------------------------- loss
def contrastive_loss(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """Mean cross entropy of row i of ``queries`` (n, d) finding row i of ``keys`` (n, d)."""
    queries = nn.functional.normalize(queries.float(), dim=-1)
    keys = nn.functional.normalize(keys.float(), dim=-1)
    scores = queries @ keys.T * scale
    return nn.functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def set_attention_dropout(model: nn.Module, probability: float) -> int:
    """Dropout of the attention weights on config and modules; the number of modules set.

    Raises :class:`SettingError` when no module has it: the two views would be almost the same.
    """
    config = getattr(model, "config", None)
    for name in ("attention_dropout", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, probability)
    found = [(m, name) for m in model.modules() if (name := _dropout_of_weights(m))]
    for module, name in found:
        if isinstance(getattr(module, name), nn.Dropout):
            getattr(module, name).p = probability
        else:
            setattr(module, name, probability)
    if not found:
        raise SettingError(
            f"{type(model).__name__} has no attention dropout to set; SimCSE here needs one "
            "(llama, mistral, qwen2, gemma, ...)"
        )
    return len(found)


def _dropout_of_weights(module: nn.Module) -> str | None:
    """Name under which an attention module keeps the dropout of its weights, if it is one."""
    names = ("attention_dropout", "attn_dropout", "dropout")
    for name in names if "Attention" in type(module).__name__ else names[:1]:
        value = getattr(module, name, None)
        if isinstance(value, int | float | nn.Dropout) and not isinstance(value, bool):
            return name
    return None


# --------------------------------------------------------------------------- data
def tokenize_sentences(
    sentences: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: SimCSE
) -> list[Tokens]:
    """Ids and pooled span of each sentence; :class:`DataError` with fewer than a batch of them."""
    sentences = [s.strip() for s in sentences if s.strip()]
    if len(sentences) < max(2, settings.batch_size):
        raise DataError(
            f"the corpus is too short: {len(sentences)} sentences, at least a batch of "
            f"{max(2, settings.batch_size)} is needed. Give more (--data), a smaller --batch-size."
        )
    prompts = [Prompt(sentence, 0, len(sentence)) for sentence in sentences]
    return tokenize(prompts, tokenizer, settings.max_length)


class Padder:
    """Collator: (position, tokens) pairs to ids, mask and pooled span, each (batch, length)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, left: bool = False) -> None:
        self.pad, self.left = tokenizer.pad_token_id, left

    def __call__(self, samples: list[tuple[int, Tokens]]) -> dict[str, Any]:
        length = max(len(t.ids) for _, t in samples)
        shape = len(samples), length
        ids = torch.full(shape, self.pad)
        mask, span = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for row, (_, tokens) in enumerate(samples):
            n = len(tokens.ids)
            place = slice(length - n, None) if self.left else slice(n)
            ids[row, place] = torch.tensor(tokens.ids)
            mask[row, place] = True
            span[row, place] = torch.tensor(tokens.span)
        return {"input_ids": ids, "mask": mask, "span": span, "position": samples[0][0]}


def parts_by_length(
    lengths: Sequence[int], max_tokens: int, fewest: int | None = None
) -> list[list[int]]:
    """Rows grouped so that both views of a group hold at most ``max_tokens``, longest first.

    Groups end earlier where padding begins, but not below ``fewest`` tokens of one view.
    """
    return token_batches(lengths, max_tokens // 2, fewest=fewest)


def parts_of_batch(lengths: Sequence[int], options: Options) -> list[list[int]]:
    """Rows of a batch in parts that suit the device.

    A pass of few tokens leaves a GPU waiting: it gets fewer parts, and padding.
    """
    most = options.max_tokens or min(options.pass_tokens, PART_TOKENS)
    return parts_by_length(lengths, most, None if options.on_cpu else most)


def split_further(parts: list[list[int]], number: int) -> list[list[int]]:
    """The same rows in the same order in ``number`` parts or more, the largest ones halved."""
    parts = list(parts)
    while len(parts) < number:
        largest = max(range(len(parts)), key=lambda index: len(parts[index]))
        rows = parts[largest]
        parts[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return parts


# --------------------------------------------------------------------------- model
class SimCSEModel(Stage):
    """The forward pass gives the mean state (rows, d), float32, of each row's span."""

    def forward(
        self, input_ids: torch.Tensor, mask: torch.Tensor, span: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.states(input_ids, None if bool(mask.all()) else mask.long())
        return mean_pool(hidden, span)


class SimCSETrainer(StageTrainer):
    """Both views in one pass, in parts of like length, negatives from all processes."""

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        model.train()
        position = inputs.pop("position")
        inputs = self._prepare_inputs(inputs)
        lengths = inputs["mask"].sum(1).tolist()
        self.tokens += 2 * sum(lengths)
        whole = self.settings.pool_over_padding
        if whole:  # every part as long as the whole batch, and all of it pooled
            inputs["span"] = torch.ones_like(inputs["span"])
            lengths = [inputs["mask"].shape[1]] * len(lengths)
        parts = parts_of_batch(lengths, self.options)
        parts = split_further(parts, self._most(len(parts)))

        def encode(part: int) -> torch.Tensor:
            seed_dropout(self.settings.seed, position, part)
            rows, longest = parts[part], lengths[parts[part][0]]
            return model(**{k: v[rows, :longest].repeat(2, 1) for k, v in inputs.items()})

        def loss_of(vectors: torch.Tensor) -> torch.Tensor:
            loss = self._loss(vectors, [len(p) for p in parts])
            self.guard(loss)
            return loss * self.args.world_size  # averaged over processes with the gradients

        loss = gradcache.backward(
            encode, len(parts), loss_of,
            cache=self.options.caching, no_sync=lambda: self.accelerator.no_sync(model),
        )  # fmt: skip
        return loss / self.args.world_size

    def _most(self, parts: int) -> int:
        """The largest number of parts of any process: sharded layers must run equally often."""
        if self.args.world_size == 1:
            return parts
        found = torch.tensor([parts], device=self.args.device)
        return int(self.accelerator.gather(found).max())

    def _loss(self, vectors: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Loss over the sentences of all processes; gradients for this one's ``vectors``."""
        parts = vectors.split([2 * n for n in sizes])
        views = torch.stack(
            [torch.cat([p.chunk(2)[view] for p in parts]) for view in (0, 1)], dim=1
        )  # (sentences, 2, d)
        if self.args.world_size > 1:
            everyone = list(self.accelerator.gather(views.detach()).chunk(self.args.world_size))
            everyone[self.args.process_index] = views
            views = torch.cat(everyone)
        return contrastive_loss(views[:, 0], views[:, 1], self.settings.scale)


# --------------------------------------------------------------------------- training
def build(
    model: Model, variant: Variant, settings: SimCSE, options: Options, mntp: Path | None = None
) -> tuple[SimCSEModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """Backbone with merged earlier stages and new LoRA, tokenizer, hashes of what was merged."""
    merged = [mntp or adapter_folder(model, "mntp")] if "mntp" in variant.stages else []
    for folder in merged:
        check_origin(folder, model.name, "mntp")
    backbone, tokenizer = load_backbone(
        model.name, dtype="float32", device=options.placement, model=model
    )
    set_attention(backbone, variant.attention == "bidirectional")
    for folder in merged:
        backbone = merge_adapter(backbone, folder, model.name)
    backbone = backbone.to(DTYPES[storage_dtype(options)])
    set_attention_dropout(backbone, settings.attention_dropout)
    stage = SimCSEModel(add_lora(backbone, settings.lora, settings.seed), options.dtype)
    stage.set_up(model, options, dynamic=True)
    return stage, tokenizer, tuple(adapter_hash(folder) for folder in merged)


def train_simcse(
    model: Model,
    variant: Variant,
    settings: SimCSE,
    registry: SimCSE,
    output: Path,
    options: Options,
    text: Path | None = None,
    mntp: Path | None = None,
    stand_in: bool = False,
) -> Path:
    """Train SimCSE for a variant and write the adapter into ``output``; returns that folder.

    ``mntp``: folder of the MNTP adapter to start from; default the model's own. ``stand_in``: let
    a model of the paper train on other text than the paper's. A finished run is left alone, an
    unfinished one goes on. Raises :class:`~llm2vec.errors.LLM2VecError` before the first step when
    something cannot work.
    """
    if "simcse" not in variant.stages:
        raise SettingError(
            f"variant {variant.name!r} has no SimCSE stage. Valid: uni-simcse, bi-simcse, "
            "bi-mntp-simcse."
        )
    settings, registry = (fitted(s, model.architecture) for s in (settings, registry))
    sentences, sources = training_text.for_simcse(model, text, stand_in)  # cheaper than a model
    stage, tokenizer, merged = build(model, variant, settings, options, mntp)
    tokens = tokenize_sentences(sentences, tokenizer, settings)
    identity = run_settings(
        model, str(variant.adapter), settings, options, variant=variant.name,
        merged=list(merged), data=[source.as_dict() for source in sources],
        data_hash=hash_samples([t.ids for t in tokens]),
    )  # fmt: skip
    run = RunFolder(output, identity)
    if run.check(settings.steps):
        return output
    collate = Padder(tokenizer, left=settings.pool_over_padding)
    trainer = SimCSETrainer(stage, tokens, collate, settings, options, run)
    train(trainer)
    note = {
        "variant": variant.name,
        "merged_before": list(merged),
        "data": [source.as_dict() for source in sources],
        "data_texts": len(tokens),
    }
    save_adapter(trainer, model, registry, note)
    return output
