"""Texts to train on, and an honest word on where they came from (paper 2.2, D.1).

MNTP reads Wikitext-103's train split, SimCSE the Wikipedia sentences of Gao et al. (2021): local
mirror first, then the hub. Sentences of a mirror that its manifest does not call ``exact`` are
others, and count as the mirror having none. Where the real ones cannot be had, other Wikipedia
text stands in: the training part of the embedded sample (articles that the offline suite never
touches) and the sentences of a mirror; the sources, and so the adapter's provenance, say so. A
text file of one's own is read line by line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm2vec.data import Source, load_split, mirror_folder
from llm2vec.errors import AssetError, DataError
from llm2vec.hub import commit_of, is_missing, reason
from llm2vec.registry import UNPINNED
from llm2vec.registry_datasets import HUB_REVISIONS, MIRROR_NAMES, SENTENCES, STAND_IN, WIKITEXT
from llm2vec.results import sha256_file

WIKITEXT_CONFIG = "wikitext-103-raw-v1"
SENTENCES_FILE = "wiki1m_for_simcse.txt"
SAMPLE = "wikipedia-sample"

Corpus = tuple[list[str], list[Source]]


def read_text_file(file: Path) -> Corpus:
    """Non-blank lines of a UTF-8 file; :class:`DataError` says what is wrong with it."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # U+2028 and the like end no line
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 (byte {error.start}); convert it, one text per line"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {file} ({error.strerror})") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{file} holds no text; one text per line is expected")
    return texts, [Source(file.name, sha256_file(file)[:16], "file", "own text")]


def wikitext(split: str) -> tuple[list[str], Source]:
    """Non-blank rows of a split of Wikitext-103 raw."""
    folder = mirror_folder(WIKITEXT)
    mirrored = folder is not None and (folder / f"{split}.parquet").exists()
    table, source = load_split(
        WIKITEXT, split, "default" if mirrored else WIKITEXT_CONFIG, columns=("text",)
    )
    return [text.strip() for text in table["text"] if text.strip()], source


def training_texts(file: Path | None = None) -> Corpus:
    """Documents for MNTP: a file, Wikitext-103's train split, or what stands in for it."""
    if file is not None:
        return read_text_file(file)
    try:
        texts, source = wikitext("train")
        return texts, [source]
    except DataError as error:
        _say(f"Wikitext-103's train split is not to be had, other Wikipedia text is used: {error}")
    return _stand_in(sentences=False)


def training_sentences(file: Path | None = None) -> Corpus:
    """Sentences for SimCSE: a file, those of Gao et al., or what stands in for them."""
    if file is not None:
        return read_text_file(file)
    mirrored = _mirror_sentences(distinct=False)
    if mirrored and mirrored[0][1].status == "exact":
        texts, source = mirrored[0]
        return texts, [source]
    try:
        return _sentences_from_hub()
    except DataError as error:
        _say(f"other Wikipedia sentences are used: {error}")
    return _stand_in(sentences=True)


def _sentences_from_hub() -> Corpus:
    """The file at the registry's revision; an unpinned one is found in the cache offline too.

    For that it must be asked for as the newest: the cache then notes which commit that is.
    """
    from huggingface_hub import hf_hub_download

    revision = HUB_REVISIONS[SENTENCES]
    try:
        file = hf_hub_download(
            SENTENCES, SENTENCES_FILE, repo_type="dataset",
            revision=None if revision == UNPINNED else revision,
        )  # fmt: skip
    except Exception as error:
        if not is_missing(error):
            raise
        raise DataError(
            f"{SENTENCES_FILE} of {SENTENCES} is not to be had ({reason(error)})"
        ) from error
    texts, _ = read_text_file(Path(file))
    return texts, [Source(SENTENCES, commit_of(Path(file).parent) or revision, "hub", "exact")]


def _stand_in(sentences: bool) -> Corpus:
    """Mirror's sentences and the embedded sample; raises when neither is there."""
    parts = [*_mirror_sentences(distinct=sentences), *_sample(sentences)]
    texts = [text for found, _ in parts for text in found]
    if not texts:
        raise DataError(
            "no training text: neither the hub, nor a mirror (LLM2VEC_DATA), nor PyPI can be "
            "reached. Give a text file with --data."
        )
    return texts, [source for _, source in parts]


def _mirror_sentences(distinct: bool) -> list[tuple[list[str], Source]]:
    folder = mirror_folder(SENTENCES)
    if folder is None:
        return []
    table, source = load_split(SENTENCES, "train", columns=("text",))
    if source.status != "exact":  # other sentences: by the name of what they are
        digest = sha256_file(folder / "train.parquet")[:16]
        source = replace(source, id=MIRROR_NAMES[SENTENCES], revision=f"sha256:{digest}")
    if distinct and "source" in table.columns:
        # A simple sentence and the complex one it was split from say the same thing and would be
        # negatives of each other.
        table = table[table["source"] != "wiki-split simple"]
    return [(table["text"].tolist(), source)]


def _sample(sentences: bool) -> list[tuple[list[str], Source]]:
    from llm2vec.offline_corpora import training_paragraphs

    try:
        texts: Sequence[str] = training_paragraphs()
    except AssetError as error:
        _say(f"the embedded Wikipedia sample is left out: {error}")
        return []
    if sentences:
        texts = [s for paragraph in texts for s in _split_sentences(paragraph)]
    return [(list(texts), Source(SAMPLE, "gensim 4.4.0", "asset", STAND_IN))]


def _split_sentences(paragraph: str) -> list[str]:
    from llm2vec.wikitext import sentences

    return [s for s in sentences(paragraph) if re.search(r"\w+\W+\w+\W+\w+", s)]


def _say(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)
