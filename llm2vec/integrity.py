"""Is a record what it says? Everything about it that can be checked without measuring again.

Schema and hyperparameter hash (:func:`~llm2vec.results.read_record`), a clean commit, a command
whose script this repository has, the arrays beside it, and adapters that are those at hand. Used by
:mod:`llm2vec.verify` and by the tests of the committed records. Imports no torch.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

from llm2vec import layers, leakage, paths
from llm2vec.adapters import ADAPTER_WEIGHTS, WORDS_STAGE, published_adapters, stages_of
from llm2vec.errors import AdapterError, RecordError
from llm2vec.paths import ROOT
from llm2vec.registry import ADAPTER_SOURCES, MODELS, VARIANTS
from llm2vec.results import Record, read_record, sha256_file

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ARRAYS = {leakage.EXPERIMENT: leakage.SUFFIX, layers.EXPERIMENT: layers.SUFFIX}


def faults(path: Path) -> list[str]:
    """What is wrong with a record, each in one line that a reader can act on; empty if nothing."""
    try:
        record = read_record(path)
    except RecordError as error:
        return [str(error)]
    found = origin_faults(record.provenance)
    if record.experiment in _ARRAYS:
        array = path.with_name(path.name.removesuffix(".json") + _ARRAYS[record.experiment])
        found += [] if array.is_file() else [f"{array.name} is missing beside it"]
    if record.model in MODELS and record.variant in VARIANTS:
        found += adapter_faults(record)
    else:
        found.append(f"the registry does not know {record.model} {record.variant}")
    return [f"{path}: {why}. Run its command again at a clean commit." for why in found]


def origin_faults(provenance: dict[str, object]) -> list[str]:
    """What keeps a provenance from saying which committed script made a number."""
    found = []
    if provenance.get("dirty") is not False:
        found.append("made with changes that no commit holds (dirty)")
    if not _COMMIT.fullmatch(str(provenance.get("commit"))):
        found.append(f"made at commit {provenance.get('commit')!r}, which is none")
    command = str(provenance.get("command"))
    if script_of(command) is None:
        found.append(f"made by {command!r}, which names no script of this repository")
    return found


def script_of(command: str) -> Path | None:
    """The script or module of this repository that a recorded command runs; None for others."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            module = ROOT.joinpath(*word.split("."))
            candidates = [module.with_suffix(".py"), module / "__main__.py"]
        elif word.endswith(".py"):
            candidates = [ROOT / word]
        else:
            continue
        inside = (file for file in candidates if file.resolve().is_relative_to(ROOT))
        return next((file for file in inside if file.is_file()), None)
    return None


# --------------------------------------------------------------------------- adapters
def source_of(record: Record) -> str:
    """Whose adapters a record was made with: ``own`` or ``published``, as its setting says."""
    marks = (record.setting or "").split("-")
    return next((s for s in ADAPTER_SOURCES if s in marks), ADAPTER_SOURCES[0])


def adapter_faults(record: Record) -> list[str]:
    """Where a record's adapters are not those of its variant, as far as these are at hand.

    Ablations train their own, which are not kept; their number alone is known.
    """
    stages = _stages(record)
    if len(record.adapters) != len(stages):
        return [f"it names {len(record.adapters)} adapters, its variant has {len(stages)}"]
    if record.experiment == "ablations":
        return []
    found = []
    for stage, said in zip(stages, record.adapters, strict=True):
        there = _hashes(record.model, record.variant, stage, source_of(record))
        if there and said not in there:
            shown = ", ".join(digest[:12] for digest in there)
            found.append(f"adapter {stage} was {said[:12]}, at hand is {shown}")
    return found


def _stages(record: Record) -> tuple[str, ...]:
    variant = VARIANTS[record.variant]
    if record.experiment == layers.EXPERIMENT:  # of untrained weights
        return ()
    own_words = record.experiment == "word_probing" and MODELS[record.model].mntp_words
    if own_words and variant.stages == ("mntp",) and source_of(record) == "own":
        return (WORDS_STAGE,)
    return stages_of(variant)


@cache
def _hashes(model: str, variant: str, stage: str, source: str) -> tuple[str, ...]:
    """sha256 of the adapters of a stage that are here: trained, shipped, or the authors'."""
    if source == "published":
        try:
            folders = published_adapters(MODELS[model], VARIANTS[variant], local_only=True)
        except AdapterError:
            return ()
        folders = [folders[stages_of(VARIANTS[variant]).index(stage)]]
    else:
        roots = (paths.checkpoints_dir(), paths.shipped_adapters_dir())
        folders = [root / model / stage for root in roots]
    files = [folder / ADAPTER_WEIGHTS for folder in folders]
    return tuple(sha256_file(file) for file in files if file.is_file())
