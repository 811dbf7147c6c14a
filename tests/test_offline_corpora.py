"""The embedded corpora: wiki markup as prose, one reader per file, no code from a pickle."""

import bz2
import pickle
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2vec import offline_corpora
from llm2vec.errors import AssetError
from llm2vec.wikitext import GAP, read_sections, sentences

PAGE = """{{Infobox|name=Foo}}
'''Foo''' is a [[bar (thing)|bar]] that is {{convert|5|mi|km}} long.<ref>{{cite web|u=x}}</ref> \
It has &nbsp;two ends ({{IPA|fu}}), and nobody knows which is first.{{citation needed}}

* a list item that is certainly longer than sixty characters, but is no prose at all.
{| class="wikitable"
| a cell that is certainly longer than sixty characters, but is no prose at all.
|}
== History ==
[[File:Foo.jpg|thumb|left|The first [[foo]] ever built, in 1901]]
The energy is <math>E=mc^2</math> here. The second sentence, being whole, is long enough to be kept.
=== Early history ===
Too short.
== Use<!-- hidden --> ==
{|
This text follows a table that is never closed, and the page goes on after it.
== See also ==
* [[Baz]]
"""
EXPORT = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>Foo</title><ns>0</ns><revision><text>{text}</text></revision></page>
<page><title>Fu</title><ns>0</ns><redirect title="Foo" /><revision><text>x</text></revision></page>
<page><title>Talk:Foo</title><ns>1</ns><revision><text>{text}</text></revision></page>
</mediawiki>"""
PROSE = "A paragraph of an article that is longer than sixty characters."


# --------------------------------------------------------------------------- markup
def test_markup_becomes_prose():
    lead, history, early, use, also = read_sections(PAGE)
    assert lead.paragraphs == (
        "Foo is a bar that is 5 miles long. It has two ends, and nobody knows which is first.",
    )
    # The sentence with the formula is gone as a whole; its neighbour stays.
    assert history.paragraphs == ("The second sentence, being whole, is long enough to be kept.",)
    assert use.paragraphs == (
        "This text follows a table that is never closed, and the page goes on after it.",
    )
    assert early.paragraphs == also.paragraphs == ()


def test_headings_chapters_and_captions():
    sections = read_sections(PAGE)
    assert [(s.chapter, s.heading) for s in sections] == [
        ("", ""),
        ("History", "History"),
        ("History", "Early history"),
        ("Use", "Use"),
        ("See also", "See also"),
    ]
    assert sections[1].captions == ("The first foo ever built, in 1901",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It ended. Then it began.", ["It ended.", "Then it began."]),
        ("Dr. Smith met J. R. Tolkien. He left.", ["Dr. Smith met J. R. Tolkien.", "He left."]),
        ("It left at 5 p.m. in the U.S. Army.", ["It left at 5 p.m. in the U.S. Army."]),
        ('"Is it?" (Maybe.) In 1901, yes!', ['"Is it?"', "(Maybe.)", "In 1901, yes!"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]):
    assert list(sentences(text)) == expected


@given(st.lists(st.text(alphabet="abC.!? \"'()1", max_size=12), max_size=8))
def test_sentences_lose_nothing(parts: list[str]):
    text = " ".join(" ".join(parts).split())
    assert " ".join(sentences(text)) == text


@given(st.text(alphabet="ab [](){}|'=<>/\n.*#:-&;", max_size=80))
def test_any_markup_is_read_without_markup_left(markup: str):
    for section in read_sections(markup):
        for text in (*section.paragraphs, *section.captions):
            assert GAP not in text and "\n" not in text and "[[" not in text


# --------------------------------------------------------------------------- files
def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_only_articles_are_read(tmp_path: Path):
    path = _write(tmp_path / "x.bz2", bz2.compress(EXPORT.format(text=PROSE).encode()))
    assert [(a.title, a.paragraphs) for a in offline_corpora.read_articles(path)] == [
        ("Foo", (PROSE,))
    ]


@pytest.mark.parametrize("damage", [b"no bz2", bz2.compress(b"<mediawiki><page>"), b""])
def test_a_damaged_export_is_named(tmp_path: Path, damage: bytes):
    path = _write(tmp_path / "export.bz2", damage)
    with pytest.raises(AssetError, match=r"export\.bz2.*fetch it again"):
        list(offline_corpora.read_articles(path))


def test_a_truncated_export_is_named(tmp_path: Path):
    whole = bz2.compress(EXPORT.format(text=PROSE).encode())
    path = _write(tmp_path / "export.bz2", whole[: len(whole) // 2])
    with pytest.raises(AssetError, match=r"export\.bz2"):
        list(offline_corpora.read_articles(path))


def test_similarities_are_the_upper_triangle(tmp_path: Path):
    path = _write(tmp_path / "s.txt", "1\t0.5\t0.2\n0\t1\t0.7\n0\t0\t1\n")
    expected = ((0, 1, 0.5), (0, 2, 0.2), (1, 2, 0.7))
    assert offline_corpora.read_similarities(path, 3) == expected


@pytest.mark.parametrize("content", ["1\t0\n", "1\tx\n0\t1\n", "1\t0\t0\n0\t1\t0\n"])
def test_similarities_of_another_shape_are_refused(tmp_path: Path, content: str):
    with pytest.raises(AssetError, match=r"s\.txt"):
        offline_corpora.read_similarities(_write(tmp_path / "s.txt", content), 2)


def test_word_pairs(tmp_path: Path):
    path = _write(tmp_path / "w.tsv", "# comment\nold\tnew\t1.58\n")
    assert offline_corpora.read_word_pairs(path) == (("old", "new", 1.58),)
    with pytest.raises(AssetError, match=r"w\.tsv"):
        offline_corpora.read_word_pairs(_write(path, "old new 1.58\n"))


def test_reviews_need_a_label(tmp_path: Path):
    path = _write(tmp_path / "r.cor", b"__label__pos a \x97 b .\n")
    assert offline_corpora.read_reviews(path) == (("pos", "a — b ."),)
    with pytest.raises(AssetError, match=r"r\.cor"):
        offline_corpora.read_reviews(_write(path, "a b .\n"))


POST = """From: someone
Newsgroups: sci.space,sci.astro
Subject: Re: re:  Moon   base

In article <1@x> someone writes:
> quoted
Our own
 words.
mail me at a@b.c
--
Signature"""


def _posts_file(path: Path, *posts: str) -> Path:
    return _write(path, zlib.compress(pickle.dumps({"data": list(posts)}, protocol=0)))


def test_posts_keep_what_their_sender_wrote(tmp_path: Path):
    (post,) = offline_corpora.read_posts(_posts_file(tmp_path / "p", POST))
    assert post == offline_corpora.Post("sci.space", "Moon base", "Our own words.")


@pytest.mark.parametrize("groups", ["rec.autos", "sci.space,alt.atheism"])
def test_posts_of_no_or_of_both_groups_are_refused(tmp_path: Path, groups: str):
    path = _posts_file(tmp_path / "p", POST.replace("sci.space,sci.astro", groups))
    with pytest.raises(AssetError, match="two groups"):
        list(offline_corpora.read_posts(path))


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_the_newsgroup_pickle_is_never_executed(tmp_path: Path):
    bomb = pickle.dumps([_Bomb(tmp_path / "executed")], protocol=0)
    with pytest.raises(AssetError, match="no posts"):
        list(offline_corpora.read_posts(_write(tmp_path / "p", zlib.compress(bomb))))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", [b"", b"text", zlib.compress(b"no pickle at all")[:-3]])
def test_damaged_posts_are_named(tmp_path: Path, damage: bytes):
    with pytest.raises(AssetError, match="newsgroup sample"):
        list(offline_corpora.read_posts(_write(tmp_path / "p", damage)))


# --------------------------------------------------------------------------- the split
@pytest.mark.parametrize(
    ("title", "split"),
    [
        ("Albania", "suite"),
        ("Afghanistan", "suite"),
        ("Apollo", "suite"),
        ("Anarchism", "train"),
        ("Abraham Lincoln", "train"),
        ("Asia", "train"),
    ],
)
def test_the_split_never_changes(title: str, split: str):
    assert offline_corpora.split_of(title) == split


@given(st.text())
def test_every_title_has_one_side(title: str):
    first = offline_corpora.split_of(title)
    assert first in ("suite", "train") and first == offline_corpora.split_of(title)
