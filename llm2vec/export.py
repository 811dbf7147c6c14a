"""A trained encoder as a folder that SentenceTransformer loads, with the vectors of ``encode``.

    llm2vec export --model smollm2-135m --variant bi-mntp-simcse --output my-encoder

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("my-encoder")
    model.encode("a text"); model.encode("a text", prompt="Retrieve relevant passages: ")

The same folder loads as a plain transformers model (``AutoModel``) and with
``LLM2Vec.from_pretrained``. Only classes of sentence-transformers are named, so nobody has to trust
code. What the two libraries do differently is settled in the folder:

* ``is_causal: false`` stands in ``config.json``, with an attention implementation where the usual
  one ignores it (stablelm), and the text modality is pinned, so that no chat template is wrapped
  around the texts.
* SentenceTransformer counts the tokens of a prompt by tokenizing it alone, where the final blank
  is a token of its own, and it pools BOS. A normalizer takes the blank away from a string that
  ends in ": ", and a BOS counts as part of the default prompt: a mark that the normalizer removes.
* EOS, and the closing part of a chat format, are put at the end by the tokenizer.

What cannot be settled is named in the model card: texts above 400 tokens, and a prompt before a
text whose first character the tokenizer does not join with the blank. ``weighted_mean`` is
refused: SentenceTransformer's weights start at the prompt or BOS, so only a text without either
would come out right, and it imports a pooling of one's own with ``trust_remote_code`` alone. For
Echo, which pools the second half of what it reads, there is no module at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, __version__
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Regex, Tokenizer, normalizers, processors
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TokenizersBackend,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from llm2vec.attention import check_attention
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import AttentionError, LLM2VecError, SettingError
from llm2vec.folders import CONFIG, TOKENIZER, check_output
from llm2vec.loading import check_storable, write_backbone
from llm2vec.model_card import Score, write_card
from llm2vec.prompts import build_prompt, format_instruction
from llm2vec.registry import PARTS, TASKS, get_pooling, get_variant
from llm2vec.results import write_atomic

MARK = "\ue000"  # private use, so in no text: ends a prompt of which nothing else would be left
POOLING = {"mean": "mean", "eos": "lasttoken"}
GENERIC = TokenizersBackend.__name__
COSINE = {torch.float32: 0.9999}  # else 0.999: half precision feels the batch
PROBES = (
    "A fox sleeps.",
    "The quick brown fox jumps over the lazy dog while the others look on.",
    "Naïve café: texts in several tongues, and one with 12 numbers.",
    "the other dog reads from left to right",
)
INSTRUCTION = "Retrieve semantically similar text:"


class ExportError(LLM2VecError):
    """An encoder that another library would not run in the same way."""


def export(
    encoder: LLM2Vec,
    output: Path,
    *,
    scores: Sequence[Score] | None = None,
    adapters: Sequence[Path] = (),
    verify: bool = True,
) -> Path:
    """Write the encoder into the folder ``output``, whole or not at all; returns the folder.

    ``scores`` go into the model card (default: this repository's records of the encoder), as does
    the provenance of ``adapters`` (folders; default: this repository's own).
    ``verify`` loads the folder again and compares vectors. Raises :class:`SettingError` for what
    SentenceTransformer cannot do or a folder in use, :class:`ExportError` when vectors differ.
    """
    output = Path(output)
    check_output(output)
    check_settings(encoder.variant.name, encoder.pooling)
    check_storable(encoder.backbone)
    partial = output.parent / f".{output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_model(encoder, partial)
        _write_modules(encoder, partial)
        if verify:
            verify_export(encoder, partial)
        write_card(encoder, partial, scores, adapters)
        if output.exists():
            output.rmdir()  # empty, as checked
        partial.replace(output)
    except OSError as error:
        raise SettingError(f"cannot write to {output} ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def check_settings(variant: str | None, pooling: str | None) -> None:
    """Raises :class:`SettingError` for what no folder can express (None: still open)."""
    kind = get_variant(variant) if variant else None
    if kind is not None and (kind.attention == "own" or kind.echo):
        raise SettingError(
            f"variant {variant!r} cannot be exported: SentenceTransformer has no module for it. "
            "Valid: uni, bi and the trained variants of a decoder."
        )
    if pooling is not None and get_pooling(pooling) not in POOLING:
        raise SettingError(
            f"pooling {pooling!r} cannot be exported: SentenceTransformer counts its weights from "
            f"the prompt on, LLM2Vec from the text. Valid: {', '.join(POOLING)}; LLM2Vec.save "
            "keeps any."
        )


# --------------------------------------------------------------------------- writing
def _write_model(encoder: LLM2Vec, folder: Path) -> None:
    write_backbone(encoder.backbone, folder)
    encoder.tokenizer.save_pretrained(folder / TOKENIZER)
    settings = encoder.settings() | {"tokenizer": TOKENIZER}
    write_atomic(folder / CONFIG, json.dumps(settings, indent=1) + "\n")
    tokenizer_for_others(encoder).save_pretrained(folder)


def _write_modules(encoder: LLM2Vec, folder: Path) -> None:
    pooling = Pooling(
        encoder.embedding_size, POOLING[encoder.pooling], include_prompt=encoder.pooling == "eos"
    )
    (folder / "1_Pooling").mkdir()
    pooling.save(str(folder / "1_Pooling"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{kind.__module__}.{name}"}
        for index, (path, name, kind) in enumerate(
            [("", "Transformer", Transformer), ("1_Pooling", "Pooling", Pooling)]
        )
    ]
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    plain = plain_prompt(encoder)
    top = {
        "model_type": "SentenceTransformer",
        "__version__": {"sentence_transformers": __version__},
        "prompts": prompts(encoder),
        "default_prompt_name": "document" if plain else None,
        "similarity_fn_name": "cosine",
    }
    for name, values in {
        "modules.json": modules,
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": text},
            "module_output_name": "token_embeddings",
            **_loaded_as_written(folder),
        },
        "config_sentence_transformers.json": top,
    }.items():
        write_atomic(folder / name, json.dumps(values, indent=1, ensure_ascii=True) + "\n")


def _loaded_as_written(folder: Path) -> dict[str, dict[str, str]]:
    """What makes SentenceTransformer take ``tokenizer.json`` as it is.

    For some architectures (Qwen2) transformers builds the tokenizer anew from its vocabulary and
    drops the rest; named as that of an architecture without a class of its own, it is left alone.
    """
    if type(AutoTokenizer.from_pretrained(folder)) is TokenizersBackend:
        return {}
    generic = (name for name, kind in TOKENIZER_MAPPING_NAMES.items() if kind == GENERIC)
    return {"processor_kwargs": {"tokenizer_type": next(generic)}}


# --------------------------------------------------------------------------- prompts
def plain_prompt(encoder: LLM2Vec) -> str:
    """What SentenceTransformer puts before a text without an instruction."""
    if encoder.model.chat:
        return encoder.model.chat[0] + MARK
    return MARK if encoder.pooling == "mean" and _leading(encoder.tokenizer) else ""


def prompt_of(encoder: LLM2Vec, instruction: str) -> str:
    """What SentenceTransformer puts before a text that has an instruction."""
    if encoder.model.chat:
        return f"{encoder.model.chat[0]}{instruction} {MARK}"
    return f"{instruction} "


def prompts(encoder: LLM2Vec) -> Mapping[str, str]:
    """Prompts by the names that mteb looks up: each task's instruction, none for documents."""
    plain = plain_prompt(encoder)
    found = {"query": plain, "document": plain}
    mteb_tasks = [task for task in TASKS.values() if not task.dataset.startswith("llm2vec/")]
    for task in [*mteb_tasks, *(part for parts in PARTS.values() for part in parts)]:
        instructed = prompt_of(encoder, format_instruction(task.instruction))
        if task.symmetric:
            found[task.name] = instructed
        else:
            found |= {f"{task.name}-query": instructed, f"{task.name}-document": plain}
    return found


# --------------------------------------------------------------------------- tokenizer
def tokenizer_for_others(encoder: LLM2Vec) -> PreTrainedTokenizerFast:
    """Tokenizer whose plain call gives the ids of ``encode``, and prompts their true length."""
    source = encoder.tokenizer
    if getattr(source, "backend_tokenizer", None) is None:
        raise SettingError(f"{type(source).__name__} has no fast tokenizer, which export needs")
    leading = _leading(source)
    closing = encoder.model.chat[1] if encoder.model.chat else ""
    closing_ids = source(closing, add_special_tokens=False)["input_ids"] if closing else []
    as_token = len(closing_ids) == 1 and closing_ids[0] in source.all_special_ids
    end = closing_ids if as_token else []
    if encoder.pooling == "eos":
        end = [*end, source.eos_token_id]
    tokenizer = Tokenizer.from_str(source.backend_tokenizer.to_str())
    rules = _rules(encoder, "" if as_token else closing)
    if rules:
        own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([*rules, *own])
    if end:
        tokenizer.post_processor = _ends(source, leading, end)
    # SentenceTransformer takes a final special token off a prompt's length; so what a prompt may
    # end in, or BOS where that is all there is of it, must not be known as one.
    kept = {
        name: token
        for name in ("pad_token", "eos_token")
        if (token := getattr(source, name)) is not None
        and not (encoder.pooling == "mean" and source.convert_tokens_to_ids(token) in leading)
    }
    if "pad_token" not in kept:
        first = next(i for i in range(len(leading) + 1) if i not in leading)
        kept["pad_token"] = kept.get("eos_token") or source.convert_ids_to_tokens(first)
    if as_token and closing not in kept.values():
        kept["extra_special_tokens"] = [closing]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=encoder.max_length,
        model_input_names=["input_ids", "attention_mask"],
        **kept,
    )


def _rules(encoder: LLM2Vec, closing: str) -> list[normalizers.Normalizer]:
    def replace(pattern: str, by: str) -> normalizers.Normalizer:
        return normalizers.Replace(Regex(pattern), by)

    if not encoder.model.chat:
        plain = plain_prompt(encoder)
        blank = [replace(r": \z", ":")] if encoder.pooling == "mean" else []
        return [*blank, normalizers.Replace(MARK, "")] if plain else blank
    rules = [replace(r"\s+\z", "")]
    if closing:  # after a text, not after a prompt that is tokenized alone
        rules.append(replace(rf"(?<!{MARK})\z", closing))
    return [*rules, replace(rf" ?{MARK}\z", ""), normalizers.Replace(MARK, "")]


def _ends(source: PreTrainedTokenizerBase, leading: list[int], end: list[int]) -> processors:
    """Post-processor that puts the tokens ``leading`` before a text and ``end`` after it."""
    parts = {"START": leading, "END": end}
    template = " ".join([*(["START"] if leading else []), "$A", "END"])
    return processors.TemplateProcessing(
        single=template,
        pair=template + " $B",
        special_tokens=[
            {"id": name, "ids": ids, "tokens": source.convert_ids_to_tokens(ids)}
            for name, ids in parts.items()
            if ids
        ],
    )


def _leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens that the tokenizer puts before a text; it may put none behind."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    marks = encoded["special_tokens_mask"]
    text = marks.index(0)
    if any(marks[text:]) or text > 1:
        raise SettingError(
            f"{type(tokenizer).__name__} adds special tokens other than one BOS, which "
            "SentenceTransformer would pool; such a model cannot be exported"
        )
    return list(encoded["input_ids"][:text])


# --------------------------------------------------------------------------- verifying
def verify_export(encoder: LLM2Vec, folder: Path) -> None:
    """Load a folder with SentenceTransformer and compare attention and vectors with ``encode``."""
    model = SentenceTransformer(
        str(folder), device=str(encoder.device), local_files_only=True,
        model_kwargs={"dtype": encoder.dtype},
    )  # fmt: skip
    try:
        check_attention(model[0].auto_model, encoder.variant.attention == "bidirectional")
    except AttentionError as error:
        raise ExportError(
            f"transformers alone does not keep the attention of this architecture ({error}); use "
            "LLM2Vec.save and LLM2Vec.from_pretrained instead"
        ) from error
    for instruction, given in (("", None), (INSTRUCTION, prompt_of(encoder, INSTRUCTION))):
        texts = [text for text in PROBES if joins_blank(encoder, instruction, text)]
        if not texts:
            raise ExportError("the tokenizer never joins a blank with the word after it")
        ours = encoder.encode([(instruction, text) for text in texts], convert_to_numpy=True)
        for batch_size in (1, len(texts)):
            theirs = model.encode(
                texts, prompt=given, batch_size=batch_size, show_progress_bar=False
            )
            lowest = float(cosines(ours, theirs).min())
            if not lowest >= COSINE.get(encoder.dtype, 0.999):
                raise ExportError(
                    f"SentenceTransformer gives other vectors (cosine {lowest:.5f}, batch size "
                    f"{batch_size}, {'with' if instruction else 'without'} a prompt): this "
                    "tokenizer cannot be exported. Use LLM2Vec.save instead."
                )


def joins_blank(encoder: LLM2Vec, instruction: str, text: str) -> bool:
    """Whether the blank before a text, where there is one, is no token of its own."""
    prompt = build_prompt(instruction, text, encoder.model)
    before = encoder.tokenizer(prompt.string[: prompt.start].rstrip(" "))["input_ids"]
    (whole,) = encoder.tokenize([(instruction, text)])
    return whole.span.index(True) == len(before)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosine of row i of both: (n, d), (n, d) -> (n,)."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / np.maximum(norms, 1e-12)
