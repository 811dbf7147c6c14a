"""Which text a model is trained on: for a model of the paper, the paper's text or none.

:mod:`llm2vec.corpora` lets other Wikipedia text stand in where Wikitext-103 or the sentences of
Gao et al. cannot be had. That serves the small model, which shows the recipe on a laptop. An
adapter of the paper's models made so would take GPU hours and be no adapter of the paper's, so
there it must be asked for.
"""

from __future__ import annotations

from pathlib import Path

from llm2vec import corpora
from llm2vec.corpora import Corpus
from llm2vec.data import Source
from llm2vec.errors import DataError
from llm2vec.registry import Model
from llm2vec.registry_datasets import SENTENCES, WIKITEXT

NOT_THE_PAPERS = ("stand-in", "substitute", "partial")  # within a status


def for_mntp(model: Model, file: Path | None = None, stand_in: bool = False) -> Corpus:
    """Documents for MNTP; :class:`DataError` where a model of the paper would get others."""
    texts, sources = corpora.training_texts(file)
    if not stand_in:
        _refuse_others(model, sources, f"Wikitext-103's train split ({WIKITEXT})")
    return texts, sources


def for_simcse(model: Model, file: Path | None = None, stand_in: bool = False) -> Corpus:
    """Sentences for SimCSE; :class:`DataError` where a model of the paper would get others."""
    sentences, sources = corpora.training_sentences(file)
    if not stand_in:
        _refuse_others(model, sources, f"the Wikipedia sentences of Gao et al. ({SENTENCES})")
    return sentences, sources


def is_the_papers(source: Source) -> bool:
    """Whether a source is a text that the paper trains on; its status may call it another."""
    if source.id not in (WIKITEXT, SENTENCES):
        return False
    return not any(word in source.status.lower() for word in NOT_THE_PAPERS)


def _refuse_others(model: Model, sources: list[Source], wanted: str) -> None:
    others = [s for s in sources if s.source != "file" and not is_the_papers(s)]
    if model.in_paper and others:
        found = ", ".join(f"{source.id} ({source.status})" for source in others)
        raise DataError(
            f"{model.name} is trained on {wanted}, which cannot be had now; here is only {found}. "
            "Run where the hub answers, put it into the mirror (LLM2VEC_DATA), give text of your "
            "own (--data FILE), or take what is here all the same (--stand-in)."
        )
