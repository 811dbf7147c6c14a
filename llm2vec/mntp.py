"""Step 2 of the recipe: masked next token prediction (paper 2.1, 2.2, D.1.1).

A share of the tokens is masked with ``_``; the token at position i is predicted from the hidden
state at position i - 1, with bidirectional attention. Run by ``experiments/01_train_mntp.py``.

As the published code: every document is tokenized with its own BOS, all are concatenated, cut
into blocks, and the rest is dropped; special tokens, and a ``_`` of the text, are never masked.
Deviations on purpose: logits are computed only where there is a loss (the same loss, to
rounding); blank rows of the corpus are left out instead of becoming a lone BOS, and rows come
without the blank in front and the line end behind them; the mean of the loss is over the whole
batch even when it runs in micro-batches. A tokenizer that adds no BOS (SmolLM2's) gets none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec import corpora, training_text
from llm2vec.architectures import fitted
from llm2vec.attention import set_attention
from llm2vec.errors import DataError, LLM2VecError, SettingError
from llm2vec.heads import check_head, head_of
from llm2vec.loading import load_backbone
from llm2vec.lora import add_lora
from llm2vec.registry import MNTP, Model
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

IGNORED = -100
EVALUATION_TOKENS = 16_384  # of Wikitext's test split, for the accuracy before and after


# --------------------------------------------------------------------------- data
def mask_token_id(tokenizer: PreTrainedTokenizerBase, token: str = "_") -> int:
    """Id of the token that masks; :class:`SettingError` when the vocabulary lacks it."""
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or (index == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise SettingError(
            f"the tokenizer has no token {token!r} to mask with; choose a model whose vocabulary "
            "holds it, or another mask_token in the registry"
        )
    return int(index)


def make_blocks(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_size: int, needed: int = 1
) -> np.ndarray:
    """Token ids (n, block_size) of the texts, one after another; the remainder is dropped.

    Raises :class:`DataError` when there are fewer than ``needed`` blocks.
    """
    texts = [text for text in texts if text.strip()]
    rows: list[int] = []
    for start in range(0, len(texts), 1000):
        for ids in tokenizer(texts[start : start + 1000], verbose=False)["input_ids"]:
            rows.extend(ids)
    blocks = len(rows) // block_size
    if blocks < needed:
        raise DataError(
            f"the corpus is too short: {len(texts)} texts with {len(rows)} tokens give {blocks} "
            f"blocks of {block_size}, at least {needed} are needed. Give more text (--data) or a "
            "smaller --block-size."
        )
    return np.asarray(rows[: blocks * block_size], np.int32).reshape(blocks, block_size)


def mask_block(
    ids: np.ndarray,
    protected: np.ndarray,
    generator: np.random.Generator,
    mask_id: int,
    vocabulary: int,
    probability: float,
    masking: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Masked ids and labels of one block (length,); ``protected`` ids are never chosen.

    ``bert``: of the chosen 80 % become the mask, 10 % a random token, 10 % stay. ``all``: all
    become the mask. The first position may be masked but has no label: nothing comes before it.
    """
    chosen = (generator.random(len(ids)) < probability) & ~np.isin(ids, protected)
    dice = generator.random(len(ids))
    random = generator.integers(vocabulary, size=len(ids))
    labels = np.where(chosen, ids, IGNORED)
    labels[0] = IGNORED
    if masking == "all":
        return np.where(chosen, mask_id, ids), labels
    masked = np.where(chosen & (dice < 0.8), mask_id, ids)
    return np.where(chosen & (dice >= 0.8) & (dice < 0.9), random, masked), labels


class Masker:
    """Collator: (position, block) pairs to ``input_ids`` and ``labels``, each (batch, length)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: MNTP) -> None:
        self.settings = settings
        self.mask_id = mask_token_id(tokenizer, settings.mask_token)
        self.protected = np.array([*tokenizer.all_special_ids, self.mask_id])
        self.vocabulary = len(tokenizer)

    def __call__(self, samples: list[tuple[int, np.ndarray]]) -> dict[str, Any]:
        s = self.settings
        rows = [
            mask_block(
                block, self.protected, np.random.default_rng([s.seed, position]),
                self.mask_id, self.vocabulary, s.mask_probability, s.masking,
            )
            for position, block in samples
        ]  # fmt: skip
        ids, labels = (
            torch.from_numpy(np.stack(part).astype(np.int64)) for part in zip(*rows, strict=True)
        )
        return {"input_ids": ids, "labels": labels, "position": samples[0][0]}


# --------------------------------------------------------------------------- model
class MNTPModel(Stage):
    """Backbone and head; the forward pass gives the sum of the loss over the labels."""

    def __init__(self, backbone: PeftModel, head: nn.Module, dtype: str = "float32") -> None:
        super().__init__(backbone, dtype)
        self.head = head.requires_grad_(False)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, targets = predictions(self, input_ids, labels)
        return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def predictions(
    model: MNTPModel | PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, vocabulary) and targets (n,) of the labelled positions alone.

    ``model`` is an :class:`MNTPModel` or a causal language model of transformers.
    """
    if isinstance(model, MNTPModel):
        hidden, head = model.states(input_ids), model.head
    else:
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        head = head_of(model)
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    picked = hidden[:, :-1][labelled]
    with torch.autocast(
        picked.device.type, torch.bfloat16, enabled=getattr(model, "autocast", False)
    ):
        return head(picked), targets[labelled]


@torch.inference_mode()
def evaluate_masked_accuracy(
    model: MNTPModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: np.ndarray,
    mask_probability: float = 0.2,
    seed: int = 42,
    batch: int = 4,
    mask_token: str = "_",
) -> dict[str, float]:
    """Accuracy and mean loss on masked tokens of blocks (n, length): accuracy, loss, n.

    Every chosen token is replaced by the mask (no random and no kept ones), so that the number is
    what can be restored from the context alone. Raises :class:`SettingError` when the vocabulary
    lacks ``mask_token``.
    """
    settings = MNTP(
        mask_probability=mask_probability, masking="all", mask_token=mask_token, seed=seed
    )
    masker, device = Masker(tokenizer, settings), next(model.parameters()).device
    training, right, loss, n = model.training, 0, 0.0, 0
    model.eval()
    for start in range(0, len(blocks), batch):
        rows = list(enumerate(blocks[start : start + batch], start))
        inputs = masker(rows)
        logits, targets = predictions(
            model, inputs["input_ids"].to(device), inputs["labels"].to(device)
        )
        right += int((logits.argmax(-1) == targets).sum())
        loss += float(nn.functional.cross_entropy(logits.float(), targets, reduction="sum"))
        n += len(targets)
    model.train(training)
    return {"accuracy": right / max(n, 1), "loss": loss / max(n, 1), "n": n}


# --------------------------------------------------------------------------- training
class MNTPTrainer(StageTrainer):
    """Mean loss over all labels of the batch, whatever its micro-batches and processes."""

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        model.train()
        seed_dropout(self.settings.seed, inputs.pop("position"))
        inputs = self._prepare_inputs(inputs)
        self.tokens += inputs["input_ids"].numel()
        # Data parallelism averages gradients over processes; the count is that of all of them.
        share = self.args.world_size / max(1, int(num_items_in_batch))
        loss = model(**inputs) * share
        self.guard(loss)
        self.accelerator.backward(loss)
        return loss.detach()


def build(
    model: Model, settings: MNTP, options: Options
) -> tuple[MNTPModel, PreTrainedTokenizerBase]:
    """The bidirectional backbone with new LoRA and its frozen head."""
    language_model, tokenizer = load_backbone(
        model.name, dtype=storage_dtype(options), device=options.placement, head=True, model=model
    )
    check_head(language_model)
    set_attention(language_model, True)
    body = add_lora(language_model.base_model, settings.lora, settings.seed)
    stage = MNTPModel(body, head_of(language_model), options.dtype)
    stage.set_up(model, options)
    return stage, tokenizer


def train_mntp(
    model: Model,
    settings: MNTP,
    registry: MNTP,
    output: Path,
    options: Options,
    text: Path | None = None,
    stage_name: str = "mntp",
    accuracy: bool = True,
    stand_in: bool = False,
) -> Path:
    """Train MNTP and write the adapter into ``output``; returns that folder.

    A finished run is left alone, an unfinished one goes on. ``accuracy``: measure masked-token
    accuracy before and after, for the adapter's provenance. ``stand_in``: let a model of the paper
    train on other text than the paper's. Raises :class:`~llm2vec.errors.LLM2VecError` before the
    first step when something cannot work.
    """
    settings, registry = (fitted(s, model.architecture) for s in (settings, registry))
    # cheaper than a model: mistakes show first
    texts, sources = training_text.for_mntp(model, text, stand_in)
    stage, tokenizer = build(model, settings, options)
    blocks = make_blocks(texts, tokenizer, settings.block_size, needed=settings.batch_size)
    identity = run_settings(
        model, stage_name, settings, options,
        data=[source.as_dict() for source in sources], data_hash=hash_samples(blocks),
    )  # fmt: skip
    run = RunFolder(output, identity)
    if run.check(settings.steps):
        return output
    micro = max(1, options.pass_tokens // settings.block_size)
    trainer = MNTPTrainer(stage, blocks, Masker(tokenizer, settings), settings, options, run, micro)
    train(trainer)
    note: dict[str, Any] = {
        "data": [source.as_dict() for source in sources], "data_texts": len(texts),
    }  # fmt: skip
    if accuracy and trainer.is_fsdp_enabled:
        note["masked_accuracy"] = {"not measured": "no process holds a sharded model whole"}
    elif accuracy and trainer.is_world_process_zero():
        note["masked_accuracy"] = _before_and_after(stage, tokenizer, settings)
    save_adapter(trainer, model, registry, note)
    return output


def _before_and_after(
    stage: MNTPModel, tokenizer: PreTrainedTokenizerBase, settings: MNTP
) -> dict[str, Any]:
    """Masked-token accuracy on Wikitext's test split without and with the adapter.

    Or why there is none: it comes before the adapter is written, and must not cost it.
    """
    size = settings.block_size

    def measure() -> dict[str, float]:
        return evaluate_masked_accuracy(
            stage, tokenizer, blocks, settings.mask_probability, settings.seed,
            mask_token=settings.mask_token,
        )  # fmt: skip

    try:
        texts, source = corpora.wikitext("test")
        blocks = make_blocks(texts, tokenizer, size)[: max(1, EVALUATION_TOKENS // size)]
        with stage.backbone.disable_adapter():
            before = measure()
        after = measure()
    except LLM2VecError as error:
        return {"not measured": str(error)}
    return {"before": before, "after": after, "data": source.as_dict(), "blocks": len(blocks)}
