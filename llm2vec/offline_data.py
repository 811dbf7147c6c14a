"""What the offline suite's tasks are made of: one function per task, from corpora to plain data.

A label is always a fact about the text that somebody else established: a human judgement, the
article or section a sentence stands in, the section an image illustrates, the newsgroup a post
was sent to. Nothing is sampled: whatever must be chosen is chosen by the hash of its content, so
every build gives the same data. ``docs/offline-suite.md`` has sizes, chance levels and baselines.

The shapes of the data, by task type:

- retrieval, reranking: ``corpus`` and ``queries`` (id -> text), ``relevant`` (query id -> document
  ids), ``candidates`` (the same, for reranking, else None)
- STS: ``sentence1``, ``sentence2``, ``score``; pair classification: ``labels`` instead
- clustering: ``sentences`` and ``labels``, one list per cluster set
- classification: ``train`` and ``test``, each ``text`` and ``label``
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypeVar

from llm2vec.offline_corpora import Article, Corpora
from llm2vec.wikitext import Section, sentences

Data = dict[str, Any]
T = TypeVar("T")
Words = tuple[int, int]  # fewest and most words

# Short texts keep one variant of a 135M model near two minutes on two cores.
SENTENCE: Words = (8, 16)
PASSAGE: Words = (15, 32)
LATER: Words = (8, 25)  # a sentence that is a query


# --------------------------------------------------------------------------- choosing texts
def _choose(items: Iterable[T], n: int, salt: str) -> list[T]:
    """``n`` distinct items, in an order that depends on their content and the salt alone."""

    def by_hash(item: T) -> str:
        return hashlib.sha256(f"{salt}\0{item}".encode()).hexdigest()

    return sorted(dict.fromkeys(items), key=by_hash)[:n]


def _fits(text: str, words: Words) -> bool:
    return words[0] <= len(text.split()) <= words[1]


def _first_words(text: str, n: int) -> str:
    return " ".join(text.split()[:n])


def _passage(paragraph: str) -> str:
    """The leading whole sentences of a paragraph that fit a passage; empty if none do."""
    text = ""
    for sentence in sentences(paragraph):
        if len(f"{text} {sentence}".split()) > PASSAGE[1]:
            break
        text = f"{text} {sentence}".strip()
    return text if _fits(text, PASSAGE) else ""


def _is_plain(sentence: str) -> bool:
    return _fits(sentence, SENTENCE) and sentence[0].isupper() and sentence[-1] in ".!?"


def _plain_sentences(section: Section) -> list[str]:
    return [s for p in section.paragraphs for s in sentences(p) if _is_plain(s)]


def _grouped(pairs: Iterable[tuple[Any, T]]) -> dict[Any, list[T]]:
    groups: dict[Any, list[T]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def _articles_with(
    c: Corpora, articles: int, sections: int, texts: int, salt: str
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles of articles, each with (heading, sentence) of that many sections and sentences."""
    found = []
    for article in c.part("suite"):
        plain = {s.heading: _plain_sentences(s) for s in article.sections if s.heading}
        rich = [heading for heading, some in plain.items() if len(set(some)) >= texts]
        chosen = _choose(rich, sections, f"{salt} {article.title}")
        if len(chosen) == sections:
            rows = tuple((h, t) for h in chosen for t in _choose(plain[h], texts, salt))
            found.append((article.title, rows))
    return [(title, list(rows)) for title, rows in _choose(found, articles, salt)]


# --------------------------------------------------------------------------- STS
def _pairs(rows: Sequence[tuple[str, str, float]], label: str = "score") -> Data:
    first, second, score = zip(*rows, strict=True)
    return {"sentence1": list(first), "sentence2": list(second), label: list(score)}


def lee_sts(c: Corpora) -> Data:
    """All 1,225 pairs of Lee's 50 news documents, with the mean human judgement."""
    docs = c.lee_documents
    return _pairs([(docs[i], docs[j], score) for i, j, score in c.lee_similarities])


def wordsim_sts(c: Corpora) -> Data:
    """WordSim-353, whole: how related two words are."""
    return _pairs(c.wordsim)


def simlex_sts(c: Corpora) -> Data:
    """180 pairs of SimLex-999: how similar two words are, which is more than related."""
    return _pairs(_choose(c.simlex, 180, "simlex"))


# --------------------------------------------------------------------------- retrieval, reranking
class _Opening(NamedTuple):
    """The first passage of a section, and one caption of an image in that section."""

    article: str
    heading: str
    paragraph: str
    passage: str
    caption: str


def _openings_of(article: Article) -> list[_Opening]:
    found: dict[str, _Opening] = {}
    for section in article.sections:
        paragraph = next((p for p in section.paragraphs if _passage(p)), "")
        caption = next((c for c in section.captions if _fits(c, (6, 25))), "")
        if section.heading and paragraph:
            row = _Opening(article.title, section.heading, paragraph, _passage(paragraph), caption)
            found.setdefault(section.heading, row)
    return list(found.values())


def _openings(c: Corpora) -> list[_Opening]:
    """Eight sections each of the nine articles with the most illustrated sections."""
    articles = [_openings_of(a) for a in c.part("suite")]
    articles = [rows for rows in articles if len(rows) >= 8]
    articles.sort(key=lambda rows: (-sum(bool(r.caption) for r in rows), rows[0].article))
    chosen = []
    for rows in articles[:9]:
        in_order = _choose(rows, len(rows), "openings")
        chosen += sorted(in_order, key=lambda row: not row.caption)[:8]
    return chosen


def _retrieval(
    corpus: dict[str, str],
    queries: dict[str, tuple[str, list[str]]],
    candidates: dict[str, list[str]] | None = None,
) -> Data:
    """Data from documents by id and queries by id as (text, ids of the relevant documents)."""
    return {
        "corpus": corpus,
        "queries": {key: text for key, (text, _) in queries.items()},
        "relevant": {key: relevant for key, (_, relevant) in queries.items()},
        "candidates": candidates,
    }


def _ids(texts: Iterable[str], letter: str = "d") -> dict[str, str]:
    return {f"{letter}{i}": text for i, text in enumerate(texts)}


def heading_retrieval(c: Corpora) -> Data:
    """Title and heading of a section -> the passage that opens the section."""
    rows = _openings(c)
    queries = {f"q{i}": (f"{r.article}: {r.heading}", [f"d{i}"]) for i, r in enumerate(rows)}
    return _retrieval(_ids(r.passage for r in rows), queries)


def continuation_retrieval(c: Corpora) -> Data:
    """The last short sentence of a paragraph -> the passage that opens the paragraph."""
    rows = _openings(c)
    queries = {}
    for i, row in enumerate(rows):
        rest = row.paragraph.removeprefix(row.passage)
        if later := [s for s in sentences(rest) if _fits(s, LATER)]:
            queries[f"q{i}"] = (later[-1], [f"d{i}"])
    return _retrieval(_ids(r.passage for r in rows), queries)


def news_retrieval(c: Corpora) -> Data:
    """The last sentence of a news report -> the passage that opens the report."""
    found = []
    for report in c.news:
        opening, last = _passage(report), sentences(report)[-1]
        if opening and _fits(last, LATER) and last not in opening:
            found.append((opening, last))
    rows = _choose(found, 52, "news")
    queries = {f"q{i}": (last, [f"d{i}"]) for i, (_, last) in enumerate(rows)}
    return _retrieval(_ids(opening for opening, _ in rows), queries)


def caption_reranking(c: Corpora) -> Data:
    """The caption of an image; the section it stands in against other sections of the article."""
    rows = _openings(c)
    article = _grouped((r.article, f"d{i}") for i, r in enumerate(rows))
    queries = {f"q{i}": (r.caption, [f"d{i}"]) for i, r in enumerate(rows) if r.caption}
    candidates = {f"q{i}": article[r.article] for i, r in enumerate(rows) if r.caption}
    return _retrieval(_ids(r.passage for r in rows), queries, candidates)


def subject_reranking(c: Corpora) -> Data:
    """A subject line; posts sent under it against ten other posts of the same newsgroup."""
    bodies = ((p, _first_words(p.body, 30)) for p in c.posts)
    threads = _grouped(((p.group, p.subject), b) for p, b in bodies if _fits(b, (15, 30)))
    corpus: dict[str, str] = {}
    queries: dict[str, tuple[str, list[str]]] = {}
    candidates = {}
    for group in sorted({group for group, _ in threads}):
        ids = {}
        for subject in _choose((s for g, s in threads if g == group), 21, "subject"):
            new = {f"d{len(corpus) + i}": b for i, b in enumerate(threads[group, subject][:2])}
            ids[subject] = list(new)
            corpus |= new
        for subject, relevant in ids.items():
            others = chain(*(some for s, some in ids.items() if s != subject))
            query = f"q{len(queries)}"
            queries[query] = (subject, relevant)
            candidates[query] = sorted(relevant + _choose(others, 10, subject))
    return _retrieval(corpus, queries, candidates)


# --------------------------------------------------------------------------- pair classification
def paragraph_pairs(c: Corpora) -> Data:
    """Sentences of one article: neighbours in a paragraph, or from different sections."""
    articles = []
    for article in c.part("suite"):
        neighbours: dict[str, tuple[str, str]] = {}
        for section in (s for s in article.sections if s.heading):
            for paragraph in section.paragraphs:
                parts = sentences(paragraph)
                for a, b in pairwise(parts):
                    if _is_plain(a) and _is_plain(b):
                        neighbours.setdefault(section.heading, (a, b))
        chosen = _choose(neighbours, 3, f"pairs {article.title}")
        if len(chosen) == 3:
            articles.append(tuple((h, t) for h in chosen for t in neighbours[h]))
    rows = []
    for texts in _choose(articles, 12, "pairs"):
        rows += [(a, b, int(x == y)) for i, (x, a) in enumerate(texts) for y, b in texts[i + 1 :]]
    return _pairs(rows, label="labels")


# --------------------------------------------------------------------------- classification
def _labelled(rows: Iterable[tuple[str, str]], n: int, salt: str, skip: int = 0) -> Data:
    """``n`` texts per label after the first ``skip``, of (label, text) rows; labels as numbers."""
    data: Data = {"text": [], "label": []}
    for number, (_, texts) in enumerate(sorted(_grouped(rows).items())):
        chosen = _choose(texts, skip + n, salt)[skip:]
        data["text"] += chosen
        data["label"] += [number] * len(chosen)
    return data


def polarity_classification(c: Corpora) -> Data:
    """Sentences of film reviews, negative or positive."""
    rows = [(label, text) for label, text in c.reviews if _fits(text, (6, 22))]
    return {
        "train": _labelled(rows, 24, "polarity"),
        "test": _labelled(rows, 36, "polarity", skip=24),
    }


def newsgroup_classification(c: Corpora) -> Data:
    """The first 20 words of a post, by newsgroup."""
    rows = [
        (p.group, _first_words(p.body, 20))
        for p in c.posts
        if len(p.body.split()) >= 20 and not p.body.startswith("Archive-name:")  # names the group
    ]
    return {
        "train": _labelled(rows, 12, "newsgroup"),
        "test": _labelled(rows, 32, "newsgroup", skip=12),
    }


CHAPTERS = ("Culture", "Demographics", "Economy", "Geography", "History")


def chapter_classification(c: Corpora) -> Data:
    """Sentences about a country by chapter; trained on some countries, tested on others."""
    countries = []
    for article in c.part("suite"):
        found = _grouped((s.chapter, t) for s in article.sections for t in _plain_sentences(s))
        if all(chapter in found for chapter in CHAPTERS):
            countries.append([(h, t) for h in CHAPTERS for t in found[h]])
    test, train = countries[:2], countries[2:]
    return {
        "train": _labelled(chain(*train), 9, "chapter"),
        "test": _labelled(chain(*test), 14, "chapter"),
    }


# --------------------------------------------------------------------------- clustering
def _sets(groups: Sequence[Sequence[tuple[str, str]]]) -> Data:
    """Cluster sets of (label, text), each in an order by hash."""
    ordered = [_choose(rows, len(rows), "set") for rows in groups]
    return {
        "sentences": [[text for _, text in rows] for rows in ordered],
        "labels": [[label for label, _ in rows] for rows in ordered],
    }


def article_clustering(c: Corpora) -> Data:
    """Sentences by the article they come from: eight sets of three articles."""
    articles = _articles_with(c, 24, 4, 1, "articles")
    rows = [[(title, text) for _, text in texts] for title, texts in articles]
    return _sets([list(chain(*rows[i : i + 3])) for i in range(0, len(rows), 3)])


def section_clustering(c: Corpora) -> Data:
    """Sentences of one article by the section they come from: eight articles."""
    return _sets([texts for _, texts in _articles_with(c, 8, 3, 4, "sections")])


def subject_clustering(c: Corpora) -> Data:
    """Subject lines by newsgroup: eight sets."""
    lines = _grouped(
        (p.group, p.subject)
        for p in c.posts
        if _fits(p.subject, (2, 12)) and p.group not in p.subject
    )
    chosen = [[(g, t) for t in _choose(lines[g], 48, "subjects")] for g in sorted(lines)]
    n = min(map(len, chosen)) // 8
    return _sets([list(chain(*(rows[i * n : (i + 1) * n] for rows in chosen))) for i in range(8)])
