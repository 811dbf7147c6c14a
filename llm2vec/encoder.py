"""``LLM2Vec``: backbone + adapters + pooling; ``encode`` texts to vectors (paper 2, 3.2).

    from llm2vec import LLM2Vec
    encoder = LLM2Vec.from_pretrained("smollm2-135m", pooling_mode="mean")
    encoder.encode(["a text", ["an instruction:", "another text"]])     # float32 (2, 576)

Calls have the shapes of the published package; ``docs/migrating.md`` lists what differs.
Deviations on purpose: one forward pass gives every pooling that shares it, batches are formed by
token count, identical texts run once, padding is on the right, and BOS is never pooled. Encoder
baselines keep their own pooling and ignore instructions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec import prompts
from llm2vec.adapters import adapter_folders, adapter_hash, published_adapters
from llm2vec.attention import set_attention
from llm2vec.batching import Batch, TokenCounter, iterate, padding_id, tokens_per_pass
from llm2vec.errors import SettingError
from llm2vec.folders import CONFIG, open_checkpoint
from llm2vec.inputs import Pair, as_pairs, forward_passes, pooling_of
from llm2vec.loading import (
    ModelNotFoundError,
    described,
    load_backbone,
    merge_adapter,
    model_of,
    resolve_model,
    say_if_plain,
    variant_of,
    write_backbone,
)
from llm2vec.mixed import loading_dtype, precision_of, set_precision
from llm2vec.pooling import last_pool, mean_pool, rows_of, weighted_mean_pool
from llm2vec.portions import ahead, portions
from llm2vec.registry import (
    POOLINGS,
    TEXT_MAX_LENGTH,
    Model,
    Variant,
    get_model,
    get_pooling,
    get_variant,
)
from llm2vec.results import write_atomic

OWN = "none"  # the pooling axis of encoder baselines
CHUNK = 500_000  # characters that are tokenized at a time


class LLM2Vec:
    """A text encoder made of a backbone whose attention and adapters are already set.

    Use :meth:`from_pretrained` or :func:`load_encoder`; without ``model`` and ``variant`` they are
    read off the backbone's configuration. ``counter`` counts the tokens that went through the
    backbone, ``adapters`` holds the sha256 of each merged adapter.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling_mode: str = "mean",
        max_length: int | None = None,
        doc_max_length: int | None = None,
        *,
        model: Model | None = None,
        variant: Variant | None = None,
        adapters: tuple[str, ...] = (),
    ) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.model = model or resolve_model(backbone.config._name_or_path)
        causal = getattr(backbone.config, "is_causal", None) is not False
        self.variant = variant or variant_of(self.model, {}, not causal)
        own = self.variant.attention == "own"
        self.pooling = OWN if own else pooling_of(self, pooling_mode)
        self.max_length = self.model.max_length if max_length is None else max_length
        self.text_max_length = TEXT_MAX_LENGTH if doc_max_length is None else doc_max_length
        if self.max_length < 3 or self.text_max_length < 1:
            raise SettingError(
                f"max_length {max_length} leaves no room: BOS, text and EOS need at least 3 tokens"
                if self.max_length < 3
                else f"doc_max_length {doc_max_length} leaves no room: at least 1"
            )
        self.max_tokens = tokens_per_pass(backbone.device)
        self.adapters = adapters
        self.counter = TokenCounter(backbone)

    # ----------------------------------------------------------------- loading and saving
    @classmethod
    def from_pretrained(
        cls,
        base_model_name_or_path: str | Path,
        peft_model_name_or_path: str | Path | None = None,
        merge_peft: bool = True,
        enable_bidirectional: bool | None = None,
        extra_model_name_or_path: str | Path | Sequence[str | Path] | None = None,
        *,
        pooling_mode: str | None = None,
        max_length: int | None = None,
        doc_max_length: int | None = None,
        skip_instruction: bool | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        base_model: str | None = None,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> LLM2Vec:
        """Encoder from a registry name, a hub id or a folder, and adapters, merged in order.

        A folder in the published layout or one written here brings its own settings
        (``llm2vec_config.json``); arguments go before them, and without either it is mean pooling
        with bidirectional attention. Adapters are always merged, whatever ``merge_peft``.
        ``base_model`` is the registry name of what a folder is a copy of, whose chat format, dtype
        and so on it then has; ``revision`` that of the weights and tokenizer on the hub.
        ``model_kwargs`` (``device_map``, ``token``, ...) go to transformers; code of a repository
        is never run. Raises :class:`~llm2vec.errors.LLM2VecError` for unknown names, weights that
        cannot be had, an adapter that does not fit, or a backbone whose attention cannot be
        switched.
        """
        extra = extra_model_name_or_path
        more = [extra] if isinstance(extra, str | Path) else [*(extra or ())]
        peft = [] if peft_model_name_or_path is None else [peft_model_name_or_path]
        checkpoint = open_checkpoint(
            base_model_name_or_path, (*peft, *more), revision, model_kwargs
        )
        settings = checkpoint.settings
        given = {
            "pooling_mode": pooling_mode, "max_length": max_length,
            "doc_max_length": doc_max_length, "skip_instruction": skip_instruction,
        }  # fmt: skip
        settings |= {name: value for name, value in given.items() if value is not None}
        if settings.get("skip_instruction") is False:
            raise SettingError("skip_instruction=False: the instruction is never pooled here")
        model = model_of(base_model_name_or_path, checkpoint, base_model, revision)
        variant = variant_of(model, settings, enable_bidirectional)
        if variant.attention != "own":
            get_pooling(settings.get("pooling_mode", "mean"))
        model_kwargs.pop("trust_remote_code", None)
        dtype = dtype or torch_dtype
        backbone, tokenizer = load_backbone(
            checkpoint.base, dtype=loading_dtype(dtype), device=device,
            tokenizer=checkpoint.tokenizer, model=model, **model_kwargs,
        )  # fmt: skip
        if checkpoint.unread:  # or a pooling and chat format would be lost without a word
            raise ModelNotFoundError(
                f"the weights of {checkpoint.base} could be had, but not what its repository says "
                f"of them ({checkpoint.unread}). Run it once where the hub answers, or give the "
                "folder that holds them."
            )
        if "chat" not in settings:
            say_if_plain(model, tokenizer)
        if variant.attention != "own":
            set_attention(backbone, variant.attention == "bidirectional")
        for folder in checkpoint.adapters:
            backbone = merge_adapter(backbone, folder)
        set_precision(backbone, dtype)
        merged = settings.get("adapters") or ()  # before the folder was written
        return cls(
            backbone,
            tokenizer,
            settings.get("pooling_mode", "mean"),
            settings.get("max_length"),
            settings.get("doc_max_length"),
            model=model,
            variant=variant,
            adapters=(*merged, *map(adapter_hash, checkpoint.adapters)),
        )

    def save(
        self,
        output_path: str | Path,
        merge_before_save: bool = True,
        save_config: bool = True,
    ) -> None:
        """Write backbone (adapters merged), tokenizer and ``llm2vec_config.json`` into a folder.

        :meth:`from_pretrained` reads it again; transformers reads it too, with the same attention.
        Raises :class:`SettingError` for ``bfloat16-mixed``, which no folder can hold.
        """
        folder = Path(output_path)
        write_backbone(self.backbone, folder)
        self.tokenizer.save_pretrained(folder)
        if save_config:
            write_atomic(folder / CONFIG, json.dumps(self.settings(), indent=1) + "\n")

    def settings(self) -> dict[str, Any]:
        """What ``llm2vec_config.json`` says: everything but the weights."""
        return {
            "pooling_mode": self.pooling,
            "max_length": self.max_length,
            "doc_max_length": self.text_max_length,
            "skip_instruction": True,
            "enable_bidirectional": self.variant.attention != "causal",
            "variant": self.variant.name,
            **described(self.model, self.variant.attention == "own"),
            "adapters": list(self.adapters),
        }

    def to(self, device: str | torch.device) -> LLM2Vec:
        """Move the backbone; returns this encoder."""
        own_choice = self.max_tokens != tokens_per_pass(self.device)
        self.backbone.to(device)
        self.max_tokens = self.max_tokens if own_choice else tokens_per_pass(self.device)
        return self

    # ----------------------------------------------------------------- properties
    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the states; see ``precision`` for that of the products."""
        return self.backbone.dtype

    @property
    def precision(self) -> str:
        """Name of the dtype as commands take it, as in ``bfloat16-mixed``."""
        return precision_of(self.backbone)

    @property
    def attention_implementation(self) -> str:
        return str(self.backbone.config._attn_implementation)

    @property
    def embedding_size(self) -> int:
        """Width of a vector."""
        return int(self.backbone.config.get_text_config().hidden_size)

    @property
    def poolings(self) -> tuple[str, ...]:
        """Poolings that this encoder can give."""
        if self.variant.attention == "own":
            return (OWN,)
        return tuple(p for p in POOLINGS if p != "eos" or self.tokenizer.eos_token_id is not None)

    # ----------------------------------------------------------------- encoding
    def encode(
        self,
        sentences: str | Iterable[str | Sequence[str]],
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        convert_to_numpy: bool = False,
        convert_to_tensor: bool = False,
        device: str | torch.device | None = None,
    ) -> torch.Tensor | np.ndarray:
        """Vectors (n, hidden) float32 of texts or [instruction, text] pairs, in their order.

        A tensor on the CPU, or an array with ``convert_to_numpy``. A single string gives one
        vector (hidden,). ``batch_size`` caps the texts of a batch; the size is set by token count
        anyway. ``device`` moves the backbone first. Raises TypeError for anything that is no text,
        ValueError for a batch size below 1.
        """
        if device is not None:
            self.to(device)
        single = isinstance(sentences, str)
        vectors = self.encode_poolings(
            [sentences] if single else sentences, (self.pooling,), batch_size, show_progress_bar
        )[self.pooling]
        vectors = vectors[0] if single else vectors
        as_array = convert_to_numpy and not convert_to_tensor
        return vectors if as_array else torch.from_numpy(vectors)

    def encode_poolings(
        self,
        sentences: Iterable[str | Sequence[str]],
        poolings: Sequence[str] | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> dict[str, np.ndarray]:
        """Vectors (n, hidden) float32 as from :meth:`encode`, for several poolings at once.

        ``mean`` and ``weighted_mean`` share a forward pass. ``eos`` needs an EOS token at the
        end; under causal attention no other state feels it, so it shares that pass as well. No
        vector depends on which poolings are asked for together. Raises
        :class:`~llm2vec.errors.UnknownNameError` for a pooling that this encoder cannot give, and
        :class:`~llm2vec.errors.SettingError` for ``eos`` where the tokenizer has no EOS token.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        pairs = as_pairs(sentences)
        wanted = tuple(dict.fromkeys(pooling_of(self, p) for p in poolings or self.poolings))
        row_of: dict[Pair, int] = {}
        rows = np.array([row_of.setdefault(pair, len(row_of)) for pair in pairs], np.intp)
        unique = list(row_of)
        out: dict[str, np.ndarray] = {}
        for group, append_eos in forward_passes(self.variant, wanted):
            out |= self._run(unique, group, append_eos, batch_size, show_progress_bar)
        return out if len(unique) == len(rows) else {p: values[rows] for p, values in out.items()}

    def _run(
        self,
        pairs: Sequence[Pair],
        poolings: tuple[str, ...],
        append_eos: bool,
        batch_size: int | None,
        show_progress_bar: bool,
    ) -> dict[str, np.ndarray]:
        out = {p: np.zeros((len(pairs), self.embedding_size), np.float32) for p in poolings}
        cut: list[int] = []  # these lose a token to EOS, which only the pooling "eos" may feel
        chunks = portions([len(instruction) + len(text) for instruction, text in pairs], CHUNK)
        with tqdm(total=len(pairs), unit=" texts", disable=not show_progress_bar) as bar:
            for rows, tokens in ahead(
                lambda rows: self.tokenize([pairs[row] for row in rows], append_eos), chunks
            ):
                for batch in iterate(
                    self.backbone, [t.ids for t in tokens], padding_id(self.tokenizer),
                    self.max_tokens, max_rows=batch_size, progress=bar.update,
                ):  # fmt: skip
                    span = rows_of([tokens[i].span for i in batch.indices], batch.mask)
                    places = [rows[index] for index in batch.indices]
                    for pooling in poolings:
                        out[pooling][places] = self._pool(batch, span, pooling).cpu().numpy()
                cut += [row for row, row_tokens in zip(rows, tokens, strict=True) if row_tokens.cut]
        others = tuple(p for p in poolings if p != "eos")
        if others and cut:
            again = self._run([pairs[row] for row in cut], others, False, batch_size, False)
            for pooling in others:
                out[pooling][cut] = again[pooling]
        return out

    def _pool(self, batch: Batch, span: torch.Tensor, pooling: str) -> torch.Tensor:
        if pooling == "eos":
            return last_pool(batch.hidden, batch.mask)
        if pooling == "mean":
            return mean_pool(batch.hidden, span)
        if pooling == "weighted_mean":
            return weighted_mean_pool(batch.hidden, span)
        own = self.model.own_pooling
        pooled = batch.hidden[:, 0].float() if own == "cls" else mean_pool(batch.hidden, batch.mask)
        return torch.nn.functional.normalize(pooled, dim=1) if self.model.normalize else pooled

    def tokenize(self, pairs: Sequence[Pair], append_eos: bool = False) -> list[prompts.Tokens]:
        """Ids and pooled span of each (instruction, text) pair, truncated as the paper does."""
        if self.variant.attention == "own":
            built = [prompts.build_prompt("", text) for _, text in pairs]
        else:
            built = prompts.build_prompts(
                pairs, self.tokenizer, self.model, self.text_max_length, self.max_length,
                self.variant.echo,
            )  # fmt: skip
        return prompts.tokenize(built, self.tokenizer, self.max_length, append_eos)


def load_encoder(
    model_name: str,
    variant_name: str,
    *,
    pooling: str = "mean",
    adapters: str = "own",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> LLM2Vec:
    """Encoder of a registry model and variant: backbone, then attention, then adapters.

    ``adapters``: ``own`` (trained here or shipped) or ``published`` (the authors', from the hub).
    Raises :class:`~llm2vec.errors.AdapterError` naming the command that makes a missing adapter.
    """
    model, variant = get_model(model_name), get_variant(variant_name)
    find = published_adapters if adapters == "published" else adapter_folders
    folders = find(model, variant)
    backbone, tokenizer = load_backbone(model_name, dtype=loading_dtype(dtype), device=device)
    if variant.attention != "own":
        set_attention(backbone, variant.attention == "bidirectional")
    for folder in folders:
        backbone = merge_adapter(backbone, folder, model.name)
    set_precision(backbone, dtype)
    return LLM2Vec(
        backbone,
        tokenizer,
        model=model,
        variant=variant,
        pooling_mode=pooling,
        adapters=tuple(adapter_hash(folder) for folder in folders),
    )
