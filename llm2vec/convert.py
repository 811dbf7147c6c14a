"""Any decoder to an encoder in one command: the recipe of the paper from end to end.

    llm2vec convert --model ./my-decoder --data texts.txt --output my-encoder

Bidirectional attention (with the full leak check), MNTP, SimCSE, scores, export. The runs lie in
``{output}.training/`` until you delete it; each stage goes on where it was killed, and a stage
that is done is not repeated. Hyperparameters are the registry's for the models it knows and the
paper's defaults otherwise; options change them, and each adapter's ``provenance.json`` says so.

Scores are those of the offline suite's three STS tasks, or of the whole suite, mean pooling, for
the decoder as it is (causal), after the switch alone, and after training: a sign that training has
worked, no MTEB score. They are left out where their texts cannot be downloaded.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from llm2vec import corpora
from llm2vec.adapters import adapter_hash
from llm2vec.architectures import lora_for
from llm2vec.attention import check_attention, set_attention
from llm2vec.encoder import LLM2Vec
from llm2vec.errors import AssetError, SettingError
from llm2vec.export import export
from llm2vec.folders import check_output, open_checkpoint, read_settings
from llm2vec.loading import load_backbone, model_of, resolve_dtype
from llm2vec.mntp import train_mntp
from llm2vec.model_card import Score
from llm2vec.registry import MNTP, MODELS, SUITES, TASKS, UNPINNED, VARIANTS, Model, SimCSE
from llm2vec.results import write_atomic
from llm2vec.simcse import train_simcse
from llm2vec.stage import Options, with_overrides

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VARIANT = VARIANTS["bi-mntp-simcse"]
SCORED = tuple(name for name in SUITES["offline"] if TASKS[name].type == "STS")
BEFORE, SWITCHED, AFTER = "causal, untrained", "bidirectional, untrained", "trained"


@dataclass(frozen=True)
class Settings:
    """What the caller may change; None is the registry's value, or the paper's."""

    mntp_steps: int | None = None
    simcse_steps: int | None = None
    batch_size: int | None = None
    block_size: int | None = None
    learning_rate: float | None = None
    dtype: str = "bfloat16"
    device: str | None = None
    save_every: int = 20
    scores: bool = True
    all_tasks: bool = False
    revision: str | None = None


def convert(name: str, data: Path, output: Path, settings: Settings) -> Path:
    """Train and export an encoder; returns ``output``. The same call goes on after a kill.

    Raises :class:`~llm2vec.errors.LLM2VecError` before training for a model, a text file, options
    or an output that cannot work.
    """
    place = output.resolve()
    if not place.name:
        raise SettingError(f"{output} cannot hold an encoder; give a new or empty --output folder")
    work = place.with_name(place.name + ".training")
    folders = [work / "mntp", work / "mntp-simcse"]
    if _is_done(output, folders):
        _say(f"{output} is done")
        return output
    check_output(output)
    corpora.read_text_file(data)
    model = trainable_model(name, settings.revision)
    mntp = with_overrides(
        model.mntp, steps=settings.mntp_steps, batch_size=settings.batch_size,
        block_size=settings.block_size, learning_rate=settings.learning_rate,
    )  # fmt: skip
    simcse = with_overrides(
        model.simcse, steps=settings.simcse_steps, batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
    )  # fmt: skip
    options = Options(settings.dtype, settings.device, save_every=settings.save_every)
    if not folders[0].exists():
        _check_decoder(model, work, settings.device, causal=settings.scores)
    _say("MNTP")
    train_mntp(model, mntp, model.mntp, folders[0], options, data, accuracy=False)
    _say("SimCSE")
    train_simcse(model, VARIANT, simcse, model.simcse, folders[1], options, data, mntp=folders[0])
    encoder = None
    if settings.scores:
        for label, encoder in _encoders(model, folders, settings.device):
            _score(encoder, label, work, SUITES["offline"] if settings.all_tasks else SCORED)
    encoder = encoder or _trained(model, folders, settings.device)
    table = _read(work) if settings.scores else {}
    _show(table)
    return export(encoder, output, scores=_card_scores(table), adapters=folders)


def _is_done(output: Path, folders: list[Path]) -> bool:
    """Whether ``output`` was exported from exactly these adapters."""
    try:
        return read_settings(output).get("adapters") == [adapter_hash(f) for f in folders]
    except OSError:
        return False


# --------------------------------------------------------------------------- the decoder
def trainable_model(name: str, revision: str | None = None) -> Model:
    """Registry entry of a model, or one made from the configuration of a folder or hub id.

    A hub id gets the commit that ``revision`` (default: the newest) is now, which every later load
    is of. Raises :class:`SettingError` for what is no decoder, or not whole, and
    :class:`~llm2vec.loading.ModelNotFoundError` for what cannot be had.
    """
    checkpoint = open_checkpoint(name, (), revision)
    if checkpoint.adapters:
        raise SettingError(
            f"{name} holds an adapter of {checkpoint.base}; train that, or write a merged model "
            "with 'llm2vec export' first"
        )
    model = model_of(name, checkpoint, revision=revision)
    if model.kind != "decoder":
        raise SettingError(f"{name} is an encoder already; convert takes decoders")
    if model.mntp and model.simcse:
        return model
    try:
        config = AutoConfig.from_pretrained(model.hub_id, revision=_revision(model))
        tokenizer = AutoTokenizer.from_pretrained(model.hub_id, revision=_revision(model))
    except (OSError, ValueError, KeyError):
        load_backbone(name, model=model)  # which has the words for what is missing or broken
        raise
    text = config.get_text_config()
    with torch.device("meta"):
        parameters = AutoModel.from_config(config).num_parameters()
    lora = lora_for(config.model_type)
    token = mask_token(tokenizer)
    return replace(
        model, name=name, architecture=config.model_type, parameters=float(parameters),
        layers=text.num_hidden_layers, hidden_size=text.hidden_size,
        mntp=MNTP(lora=lora, mask_token=token), simcse=SimCSE(lora=lora),
    )  # fmt: skip


def _revision(model: Model) -> str | None:
    """What loads are told; the registry's models have theirs by their names, folders none."""
    return None if model.name in MODELS or model.revision == UNPINNED else model.revision


def mask_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """``_`` as in the paper, else what the vocabulary has for a mask: mask, unknown, padding."""
    known = tokenizer.get_vocab()
    others = (tokenizer.mask_token, tokenizer.unk_token, tokenizer.pad_token)
    found = next((token for token in (MNTP.mask_token, *others) if token in known), None)
    if found is None:
        raise SettingError("the tokenizer has neither '_' nor a mask, unknown or padding token")
    return found


def _check_decoder(model: Model, work: Path, device: str | None, causal: bool) -> None:
    """The full leak check in float32, and a trial of the export, before hours of training.

    ``causal``: check that side as well, which the scores of the decoder as it is are taken on, also
    in the dtype that they are taken in.
    """
    backbone, tokenizer = load_backbone(model.name, dtype="float32", device=device, model=model)
    for bidirectional in (False, True) if causal else (True,):
        set_attention(backbone, bidirectional)
        check_attention(backbone, bidirectional, tolerance=1e-3)
    trial = work / "trial"
    shutil.rmtree(trial, ignore_errors=True)  # of a run that was killed right here
    shutil.rmtree(export(LLM2Vec(backbone, tokenizer, model=model), trial, scores=[]))
    if causal:
        set_attention(backbone.to(resolve_dtype(None, model)), False)


# --------------------------------------------------------------------------- scores
def _encoders(
    model: Model, folders: list[Path], device: str | None
) -> Iterator[tuple[str, LLM2Vec]]:
    """The decoder as it is, after the switch, and trained, one after another."""
    for label, bidirectional in ((BEFORE, False), (SWITCHED, True)):
        yield (
            label,
            LLM2Vec.from_pretrained(
                model.name, enable_bidirectional=bidirectional, pooling_mode="mean", device=device,
                revision=_revision(model),
            ),
        )  # fmt: skip
    yield AFTER, _trained(model, folders, device)


def _trained(model: Model, folders: list[Path], device: str | None) -> LLM2Vec:
    encoder = LLM2Vec.from_pretrained(
        model.name, extra_model_name_or_path=folders, pooling_mode="mean", device=device,
        revision=_revision(model),
    )  # fmt: skip
    encoder.variant = VARIANT
    return encoder


def _score(encoder: LLM2Vec, label: str, work: Path, tasks: Sequence[str]) -> None:
    """Measure what ``scores.json`` lacks and add it."""
    from llm2vec.mteb_tasks import evaluate_task
    from llm2vec.vectors import Vectors

    table = _read(work)
    for task in tasks:
        if task in table.get(label, {}):
            continue
        vectors = Vectors(encoder, ("mean",), work / "vectors" / f"{label}-{task}")
        try:
            (done,), _ = evaluate_task(vectors, TASKS[task])
        except AssetError as error:
            _say(f"no scores: {error}")
            return
        vectors.discard()
        table.setdefault(label, {})[task] = done.score
        write_atomic(work / "scores.json", json.dumps(table, indent=1) + "\n")


def _read(work: Path) -> dict[str, dict[str, float]]:
    file = work / "scores.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _card_scores(table: dict[str, dict[str, float]]) -> list[Score]:
    before, switched = table.get(BEFORE, {}), table.get(SWITCHED, {})
    return [
        Score(
            task, TASKS[task].metric, score,
            f"{BEFORE}: {100 * before[task]:.2f}; {SWITCHED}: {100 * switched[task]:.2f}",
        )
        for task, score in table.get(AFTER, {}).items()
    ]  # fmt: skip


def _show(table: dict[str, dict[str, Any]]) -> None:
    for label, scores in table.items():
        line = "  ".join(f"{task} {100 * score:.2f}" for task, score in scores.items())
        _say(f"{label:<26}{line}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
