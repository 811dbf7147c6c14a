"""Real texts that one PyPI wheel carries, parsed for the offline suite and for training.

The files lie in the test data of the wheel ``gensim==4.4.0``, which is unpacked and never
imported (:mod:`llm2vec.assets`): 106 articles of English Wikipedia, the news documents of Lee et
al. with their human similarity judgements, WordSim-353, SimLex-999, 200 posts of 20 Newsgroups
and 200 sentences of film reviews. Nothing is written into them: cleaning removes markup, tables,
lists, quoted mail and signatures, and whatever sentence the removal would leave broken.

Wikipedia articles are split once, by a hash of their title (:func:`split_of`): the offline suite
is made from one part, training reads the other (:func:`training_paragraphs`).
"""

from __future__ import annotations

import bz2
import functools
import hashlib
import pickletools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from llm2vec.errors import AssetError
from llm2vec.wikitext import Section, read_sections

Split = Literal["suite", "train"]
Pair = tuple[str, str, float]

ASSET_NAMES = (
    "enwiki-sample", "lee-documents", "lee-background", "lee-similarities", "wordsim353",
    "simlex999", "mini-newsgroup", "pang-lee-polarity",
)  # fmt: skip
SUITE_SHARE = 0.4  # of the articles; the rest is for training


@dataclass(frozen=True)
class Article:
    """One Wikipedia article as prose."""

    title: str
    sections: tuple[Section, ...]

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """All paragraphs in reading order."""
        return tuple(p for s in self.sections for p in s.paragraphs)


@dataclass(frozen=True)
class Post:
    """One newsgroup post without quotations and signature."""

    group: str
    subject: str
    body: str


@dataclass(frozen=True)
class Corpora:
    """Everything the offline suite is made of.

    ``lee_similarities`` are pairs of positions in ``lee_documents`` with the mean human judgement
    in [0, 1]; the word pairs carry mean human scores in [0, 10]; ``reviews`` are (polarity, text).
    """

    articles: tuple[Article, ...]
    lee_documents: tuple[str, ...]
    lee_similarities: tuple[tuple[int, int, float], ...]
    news: tuple[str, ...]
    wordsim: tuple[Pair, ...]
    simlex: tuple[Pair, ...]
    posts: tuple[Post, ...]
    reviews: tuple[tuple[str, str], ...]

    def part(self, split: Split) -> tuple[Article, ...]:
        """The articles of one side of the split, in the order of the export."""
        return tuple(a for a in self.articles if split_of(a.title) == split)


def split_of(title: str) -> Split:
    """``suite`` or ``train``, from the sha256 of an article's title alone."""
    share = int(hashlib.sha256(title.encode()).hexdigest()[:8], 16) / 16**8
    return "suite" if share < SUITE_SHARE else "train"


def load_corpora(fetch: Callable[[str], Path] | None = None) -> Corpora:
    """All corpora, parsed (about five seconds, once per process).

    Args:
        fetch: gives the local file of an asset name; by default
            :func:`llm2vec.assets.asset_file`, which downloads and verifies it.

    Raises:
        AssetError: a file cannot be had, or is not what it should be.
    """
    if fetch is None:
        from llm2vec.assets import asset_file as fetch
    return _load(tuple(fetch(name) for name in ASSET_NAMES))


def training_paragraphs(corpora: Corpora | None = None) -> list[str]:
    """Clean paragraphs (60 characters or more) that the offline suite never touches, in order.

    They come from the ``train`` articles; a paragraph that shares eight words in a row with one of
    the other articles is left out, since articles copy from each other.
    """
    corpora = corpora or load_corpora()
    kept_back = {w for a in corpora.part("suite") for p in a.paragraphs for w in _eight_words(p)}
    paragraphs = dict.fromkeys(p for a in corpora.part("train") for p in a.paragraphs)
    return [p for p in paragraphs if kept_back.isdisjoint(_eight_words(p))]


def _eight_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


@functools.lru_cache(maxsize=2)
def _load(files: tuple[Path, ...]) -> Corpora:
    path = dict(zip(ASSET_NAMES, files, strict=True))
    documents = read_lines(path["lee-documents"], "cp1252")
    return Corpora(
        articles=tuple(read_articles(path["enwiki-sample"])),
        lee_documents=documents,
        lee_similarities=read_similarities(path["lee-similarities"], len(documents)),
        news=read_lines(path["lee-background"]),
        wordsim=read_word_pairs(path["wordsim353"]),
        simlex=read_word_pairs(path["simlex999"]),
        posts=tuple(read_posts(path["mini-newsgroup"])),
        reviews=read_reviews(path["pang-lee-polarity"]),
    )


# --------------------------------------------------------------------------- one reader per file
def _damaged(path: Path, what: str) -> AssetError:
    return AssetError(f"{path} is not {what}. Delete it and fetch it again.")


def read_articles(path: Path) -> Iterator[Article]:
    """Articles of a MediaWiki export (bz2); redirects and other namespaces are skipped."""
    try:
        with bz2.open(path) as stream:
            for _, page in ElementTree.iterparse(stream):
                if not page.tag.endswith("}page"):
                    continue
                space = page.tag[: -len("page")]
                if page.findtext(f"{space}ns") == "0" and page.find(f"{space}redirect") is None:
                    text = page.findtext(f"{space}revision/{space}text") or ""
                    yield Article(page.findtext(f"{space}title") or "", read_sections(text))
                page.clear()
    except (ElementTree.ParseError, OSError, EOFError) as error:
        raise _damaged(path, f"a readable MediaWiki export ({error})") from error


def read_lines(path: Path, encoding: str = "utf-8") -> tuple[str, ...]:
    """One document per line."""
    try:
        lines = path.read_text(encoding).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"a readable text file ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())


def read_similarities(path: Path, n: int) -> tuple[tuple[int, int, float], ...]:
    """The upper triangle of an (n, n) matrix of judgements as (row, column, score)."""
    try:
        rows = [[float(v) for v in line.split("\t")] for line in read_lines(path)]
    except ValueError as error:
        raise _damaged(path, f"a matrix of numbers ({error})") from error
    if len(rows) != n or any(len(row) != n for row in rows):
        raise _damaged(path, f"a {n} x {n} matrix, one row per document")
    return tuple((i, j, rows[i][j]) for i in range(n) for j in range(i + 1, n))


def read_word_pairs(path: Path) -> tuple[Pair, ...]:
    """Lines of word, word, score; comments start with ``#``."""
    rows = [line.split("\t") for line in read_lines(path) if not line.startswith("#")]
    try:
        return tuple((a.strip(), b.strip(), float(score)) for a, b, score in rows)
    except ValueError as error:
        raise _damaged(path, f"a list of word pairs with a score ({error})") from error


def read_reviews(path: Path) -> tuple[tuple[str, str], ...]:
    """Lines of fastText's labelled format as (label, text)."""
    rows = [line.partition(" ") for line in read_lines(path, "cp1252")]
    if any(not label.startswith("__label__") for label, _, _ in rows):
        raise _damaged(path, "a list of labelled sentences")
    return tuple((label.removeprefix("__label__"), text.strip()) for label, _, text in rows)


def read_posts(path: Path) -> Iterator[Post]:
    """Posts of 20 Newsgroups, from a zlib-compressed pickle that is read but never executed.

    ``pickletools`` disassembles the file without building any object; its unicode strings are the
    posts. The group is the one of the two that the ``Newsgroups:`` header names.
    """
    try:
        data = zlib.decompress(path.read_bytes())
        strings = [arg for op, arg, _ in pickletools.genops(data) if op.name == "UNICODE"]
    except (OSError, zlib.error, ValueError) as error:
        raise _damaged(path, f"the compressed newsgroup sample ({error})") from error
    posts = [text for text in strings if "Newsgroups:" in text]
    if not posts:
        raise _damaged(path, "the compressed newsgroup sample (it has no posts)")
    for text in posts:
        head, _, body = text.partition("\n\n")
        headers = dict(re.findall(r"(?m)^([A-Za-z-]+):[ \t]*(.*)$", head))
        groups = {"alt.atheism", "sci.space"} & set(headers.get("Newsgroups", "").split(","))
        if len(groups) != 1:
            raise _damaged(path, "a sample of the two groups alt.atheism and sci.space")
        subject = re.sub(r"(?i)^(\s*re\s*:)+", "", headers.get("Subject", ""))
        yield Post(groups.pop(), _one_line(subject), _own_words(body.splitlines()))


_NOT_OWN = re.compile(r"^\s*([>|:}*=_#~-]|In article\b|[A-Z]{2,4}>)|@|wr(i|o)tes?:?\s*$|says?:\s*$")


def _own_words(lines: Iterable[str]) -> str:
    """What the sender wrote: no quotations, attributions, addresses, drawings or signature."""
    kept = []
    for line in lines:
        if line.rstrip() in ("--", "---"):
            break
        if not _NOT_OWN.search(line):
            kept.append(line.strip())
    return _one_line(" ".join(kept))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
