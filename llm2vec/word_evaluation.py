"""From names to records of the word-level experiment: what to measure, measure it, write it.

``raw/word_probing/{model}/{variant}/none/{task}.json`` holds the paper's word alignment;
whatever departs from the paper's setting is marked: ``{task}@previous.json``,
``{task}@same-first-200.json``. The demonstration corpus has tasks of its own (``mini-ner``), so
its scores never stand among those of CoNLL-2003.

Mistral's ``bi-mntp`` takes the adapter that the paper trained for words alone (stage
``mntp-words``, BERT's masking at 0.2: D.1.3); ``--adapters published`` takes the released one, as
the released configuration does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llm2vec.adapters import (
    WORDS_STAGE,
    adapter_hash,
    folders_of,
    published_adapters,
    stages_of,
)
from llm2vec.assets import model_revision
from llm2vec.data import Source
from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.provenance import Provenance, capture_provenance, git_state
from llm2vec.registry import (
    ADAPTER_SOURCES,
    OPTIMIZER,
    PROBE,
    STORED,
    VARIANTS,
    WORD_TASKS,
    Model,
    Variant,
    get_model,
    get_variant,
    settings_dict,
    variants_of,
)
from llm2vec.results import NONE, Key, Record, is_done, write_record
from llm2vec.words import (
    ALIGNMENTS,
    CORPORA,
    Alignment,
    Sentence,
    alignment_of,
    corpus_revision,
    load_corpus,
    tokenize,
)

if TYPE_CHECKING:  # what needs torch is imported where it is used: planning does without
    from llm2vec.encoder import LLM2Vec
    from llm2vec.features import WordFeatures
    from llm2vec.probing import Outcome

EXPERIMENT = "word_probing"


@dataclass(frozen=True)
class Run:
    """One model and variant on one corpus: what will be measured."""

    model: Model
    variant: Variant
    tasks: tuple[str, ...]
    data: str
    dtype: str
    adapters: str = "own"
    max_sentences: int | None = None

    def key(self, task: str, alignment: Alignment) -> Key:
        """Key of one measurement; its setting names all that departs from the paper."""
        marks = [alignment] if alignment != alignment_of(self.variant) else []
        marks += [self.dtype] if self.dtype != self.model.dtype else []
        marks += [self.adapters] if self.adapters != "own" and self.variant.stages else []
        marks += [f"first-{self.max_sentences}"] if self.max_sentences is not None else []
        name = task if self.data == "conll2003" else f"{self.data}-{task}"
        return Key(
            EXPERIMENT, self.model.name, self.variant.name, NONE, name, "-".join(marks) or None
        )

    def hyperparameters(self, alignment: Alignment) -> dict[str, Any]:
        """What decides a score besides adapters and code; its hash tells what is done."""
        asset = self.model.asset
        own = {
            "alignment": alignment,
            "attention": self.variant.attention,
            "data": self.data,
            "data_revision": corpus_revision(self.data),
            "dtype": self.dtype,
            "max_sentences": self.max_sentences,
            "model": self.model.hub_id,
            "model_revision": model_revision(asset) if asset else self.model.revision,
            "stored": STORED,
        }
        return settings_dict(PROBE) | OPTIMIZER | own


def plan(
    model: str,
    variant: str,
    *,
    task: str | None = None,
    data: str = "conll2003",
    dtype: str | None = None,
    adapters: str = "own",
    max_sentences: int | None = None,
) -> Run:
    """Check every name before anything is loaded; errors list the valid ones."""
    spec, kind = get_model(model), get_variant(variant)
    valid = [name for name in variants_of(spec) if not VARIANTS[name].echo]
    if kind.name not in valid:
        raise SettingError(f"{model} has no variant {variant!r} here. Valid: {', '.join(valid)}.")
    if task is not None and task not in WORD_TASKS:
        raise UnknownNameError("word task", task, WORD_TASKS)
    if data not in CORPORA:
        raise UnknownNameError("corpus", data, CORPORA)
    if adapters not in ADAPTER_SOURCES:
        raise UnknownNameError("source of adapters", adapters, ADAPTER_SOURCES)
    if max_sentences is not None and max_sentences < 1:
        raise SettingError(f"max sentences is {max_sentences}; it must be 1 or more.")
    tasks = WORD_TASKS if task is None else (task,)
    return Run(spec, kind, tasks, data, dtype or spec.dtype, adapters, max_sentences)


def execute(run: Run, root: Path, device: str | None = None) -> list[Path]:
    """Measure the tasks under both alignments; returns the files of the records.

    Records that are done are left alone; with nothing to do the backbone is not even loaded.
    """
    git_state()  # of the code that runs now, whatever is edited meanwhile
    folders = word_adapters(run)
    todo = absent(run, root, tuple(adapter_hash(folder) for folder in folders))
    if todo:
        from llm2vec.probing import probe_task

        corpus, source = load_corpus(run.data, run.max_sentences)
        encoder = _load(run, folders, device)
        origin = capture_provenance(  # before the pass that all these records share
            str(encoder.device), run.dtype, encoder.attention_implementation
        )
        features = corpus_features(encoder, corpus)
        for task, alignment in todo:
            started = time.perf_counter()
            outcome = probe_task(features, corpus, task, alignment, PROBE)
            seconds = time.perf_counter() - started
            cost = total_cost(features.cost, seconds)
            record = make_record(
                run, task, alignment, outcome, source, cost,
                adapters=encoder.adapters, provenance=origin,
            )  # fmt: skip
            path = write_record(record, root)
            print(f"{path}: {outcome.score:.4f} ({seconds:.0f} s)", flush=True)
    return [run.key(task, alignment).path(root) for task, alignment in measurements(run)]


def measurements(run: Run) -> list[tuple[str, Alignment]]:
    """Every task under both alignments."""
    return [(task, alignment) for task in run.tasks for alignment in ALIGNMENTS]


def absent(run: Run, root: Path, hashes: tuple[str, ...] | None) -> list[tuple[str, Alignment]]:
    """What has no record with these adapters (None: with any)."""
    return [
        (task, alignment)
        for task, alignment in measurements(run)
        if not is_done(run.key(task, alignment), root, run.hyperparameters(alignment), hashes)
    ]


def _has_own_words_stage(run: Run) -> bool:
    mntp_alone = run.variant.stages == ("mntp",) and run.adapters == "own"
    return mntp_alone and run.model.mntp_words is not None


def word_adapters(run: Run) -> list[Path]:
    """Folders of the adapters of a run; :class:`AdapterError` when one is missing."""
    if run.adapters == "published":
        return published_adapters(run.model, run.variant)
    return folders_of(run.model, own_stages(run))


def own_stages(run: Run) -> tuple[str, ...]:
    """Stages of the recipe whose adapters a run with own adapters needs."""
    return (WORDS_STAGE,) if _has_own_words_stage(run) else stages_of(run.variant)


def _load(run: Run, folders: Sequence[Path], device: str | None) -> LLM2Vec:
    from llm2vec.encoder import LLM2Vec, load_encoder

    name = run.model.name
    if _has_own_words_stage(run):
        return LLM2Vec.from_pretrained(name, folders[0], dtype=run.dtype, device=device)
    return load_encoder(
        name, run.variant.name, adapters=run.adapters, dtype=run.dtype, device=device
    )


def corpus_features(
    encoder: LLM2Vec, corpus: Mapping[str, Sequence[Sentence]], stored: str = STORED
) -> WordFeatures:
    """Features of the words of all splits, cached; :class:`DataError` for a sentence too long."""
    from llm2vec.features import word_features

    context = encoder.backbone.config.get_text_config().max_position_embeddings
    sentences = [sentence for split in corpus.values() for sentence in split]
    tokens = tokenize(encoder.tokenizer, sentences, min(PROBE.max_length, context))
    with tqdm(total=len(tokens), unit=" sentences", desc="features", delay=5) as bar:
        return word_features(encoder, tokens, stored=stored, progress=bar.update)


def total_cost(features: Mapping[str, float], probe_seconds: float) -> dict[str, float]:
    """Cost of a record: the backbone's pass, shared by a variant's records, and its own probes."""
    return {
        **features,
        "seconds": features["seconds"] + probe_seconds,
        "feature_seconds": features["seconds"],
        "probe_seconds": probe_seconds,
        "tokens_per_second": features["tokens"] / max(features["seconds"], 1e-9),
    }


def make_record(
    run: Run,
    task: str,
    alignment: Alignment,
    outcome: Outcome,
    source: Source,
    cost: dict[str, float],
    *,
    adapters: tuple[str, ...],
    provenance: Provenance,
) -> Record:
    """The record of one measurement; ``provenance``: from before it."""
    settings = run.hyperparameters(alignment)
    return Record(
        **asdict(run.key(task, alignment)),
        metric="accuracy",
        score=outcome.score,
        interval=outcome.interval,
        scores=outcome.scores,
        split="test",
        n=outcome.words,
        seeds=PROBE.seeds,
        model_revision=settings["model_revision"],
        adapters=adapters,
        dataset=source.as_dict(),
        hyperparameters=settings,
        provenance=provenance.as_dict(),
        cost=cost,
    )
