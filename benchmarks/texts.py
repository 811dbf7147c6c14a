"""Texts to measure encoding with: short, long and of mixed length, from the embedded Wikipedia.

They come out of one PyPI wheel (see ``llm2vec/offline_corpora.py``), so every machine measures the
same. None is longer than :data:`LONGEST` tokens: no side cuts any, all run the same tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

MIXES = ("short", "long", "mixed")
SHORT_WORDS = range(5, 14)  # as in STS tasks: about 13 tokens
LONG = range(300, 501)  # tokens
LONGEST = LONG[-1]
MIXED = (1, 5, 14)  # of 20 texts: passages, paragraphs, sentences
Count = Callable[[str], int]


def choose(
    sentences: Sequence[str],
    paragraphs: Sequence[Sequence[str]],
    count: Count,
    tokens: int,
    seed: int = 0,
) -> dict[str, list[str]]:
    """About ``tokens`` tokens of different texts for each mix, twice as many of the mixed ones.

    ``paragraphs``: those of each article, in order; ``count`` gives the tokens of a text. Mixed
    texts must be many: from a handful, batches of a fixed number of texts are mostly padding.
    """
    dice = random.Random(seed)
    short = [s for s in dict.fromkeys(sentences) if len(s.split()) in SHORT_WORDS]
    long = [p for p in dict.fromkeys(passages(paragraphs, count)) if count(p) in LONG]
    middle = [p for p in dict.fromkeys(p for article in paragraphs for p in article)
              if SHORT_WORDS[-1] < len(p.split()) and count(p) <= LONGEST]  # fmt: skip
    for pool in (short, middle, long):
        dice.shuffle(pool)
    mixed = list(dict.fromkeys(in_turn((long, middle, short), MIXED)))
    amounts = {"short": (short, tokens), "long": (long, tokens), "mixed": (mixed, 2 * tokens)}
    return {name: take(pool, count, amount) for name, (pool, amount) in amounts.items()}


def in_turn(pools: Sequence[Sequence[str]], shares: Sequence[int]) -> Iterator[str]:
    """Texts of the pools by their shares, until one of them is used up."""
    for turn in range(min(len(pool) // share for pool, share in zip(pools, shares, strict=True))):
        for pool, share in zip(pools, shares, strict=True):
            yield from pool[turn * share : (turn + 1) * share]


def passages(paragraphs: Sequence[Sequence[str]], count: Count) -> Iterator[str]:
    """Consecutive paragraphs of an article, joined as long as they stay within the longest."""
    for article in paragraphs:
        passage = ""
        for paragraph in article:
            joined = f"{passage} {paragraph}".strip()
            if count(joined) <= LONGEST:
                passage = joined
                continue
            yield passage
            passage = paragraph
        yield passage


def take(pool: Sequence[str], count: Count, tokens: int) -> list[str]:
    """Texts from the start until they hold ``tokens`` tokens, at least two of them."""
    taken: list[str] = []
    held = 0
    for text in pool:
        if held >= tokens and len(taken) > 1:
            break
        taken.append(text)
        held += count(text)
    return taken


def counter() -> Count:
    """Tokens of a text, for SmolLM2-135M."""
    from tokenizers import Tokenizer

    from llm2vec.assets import model_folder

    tokenizer = Tokenizer.from_file(str(model_folder("smollm2-135m") / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text).ids)


def load(count: Count, tokens: int, seed: int = 0) -> dict[str, list[str]]:
    """The texts of each mix, from the embedded articles of Wikipedia."""
    from llm2vec.offline_corpora import load_corpora
    from llm2vec.wikitext import sentences

    articles = [article.paragraphs for article in load_corpora().articles]
    split = [s for article in articles for paragraph in article for s in sentences(paragraph)]
    return choose(split, articles, count, tokens, seed)
