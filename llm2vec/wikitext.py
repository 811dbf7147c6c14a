"""Wiki markup as prose: sections, paragraphs, image captions, sentences.

The parsing is mwparserfromhell's; this module decides what of a page is running text. Tables,
lists, references and boxes go; links and formatting leave their text; templates that write part
of a sentence (a unit, a foreign word) are spelled out. Where something inside a sentence cannot
be written as text, such as a formula, the whole sentence goes rather than a gap staying in it.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mwparserfromhell
from mwparserfromhell.nodes import (
    ExternalLink,
    HTMLEntity,
    Node,
    Tag,
    Template,
    Text,
    Wikilink,
)
from mwparserfromhell.wikicode import Wikicode

MIN_PARAGRAPH = 60  # characters; shorter ones are remains of lists and tables

GAP = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands where something could not be written as text
_INLINE_TAGS = {
    "i", "b", "small", "big", "span", "sub", "sup", "code", "tt", "nowiki", "center", "abbr", "u",
    "em", "strong", "blockquote", "s", "cite",
}  # fmt: skip
_SILENT_TAGS = {
    "ref", "references", "gallery", "table", "td", "tr", "th", "div", "timeline", "hr", "source",
    "ol", "ul", "imagemap", "score",
}  # fmt: skip
_HEADING = re.compile(r"(?m)^(={2,6})[ \t]*(.+?)[ \t]*\1[ \t]*$")
_LIST_TAGS = {"li", "dd", "dt"}
_NOTE = re.compile(
    r"^(cite|citation|sfn|harv|efn|refn|r$|rp$|ref|note|clarify|who|when|which|by whom|page|dead|"
    r"wayback|fact|cn$|dubious|anchor|vanchor|main|see|further|oclc|inconsistent|failed|update|according|"
    r"undue|better|unreliable|verify|weasel|lsj|multiple image|double image|clear|infobox)"
)
_RANGE = {"to", "-", "–", "and", "by", "x"}
_UNITS = {"sqmi": "square miles", "km2": "square kilometres", "mi": "miles", "ft": "feet"}


def _convert(a: list[str]) -> str:
    number, unit = (f"{a[0]} to {a[2]}", a[3]) if a[1] in _RANGE else (a[0], a[1])
    return f"{number} {_UNITS.get(unit, unit)}"


_INLINE_TEMPLATES: dict[str, Callable[[list[str]], str]] = {
    "convert": _convert,
    "lang": lambda a: a[1],
    "transl": lambda a: a[-1],
    "nowrap": lambda a: a[0],
    "nihongo": lambda a: a[0],
    "as of": lambda a: f"As of {a[0]}",
    "nbsp": lambda a: " ",
    "'s": lambda a: "'s",
}


@dataclass(frozen=True)
class Section:
    """One section without its subsections; the lead has the empty heading.

    ``chapter`` is the top-level heading above it (its own heading when it is top-level itself).
    """

    heading: str
    chapter: str
    paragraphs: tuple[str, ...]
    captions: tuple[str, ...]


def read_sections(markup: str) -> tuple[Section, ...]:
    """Sections of a page in reading order; those without prose are kept, with no paragraphs.

    The page is cut at its heading lines before it is parsed, so that one unclosed tag or table
    spoils one section and not the rest of the page.
    """
    sections, chapter = [], ""
    lead, *rest = _HEADING.split(re.sub(r"(?s)<!--.*?-->", "", markup))
    for level, title, body in [
        ("", "", lead),
        *zip(rest[::3], rest[1::3], rest[2::3], strict=True),
    ]:
        code = mwparserfromhell.parse(body)
        heading = _tidy(_render(mwparserfromhell.parse(title)))
        chapter = heading if len(level) <= 2 else chapter
        paragraphs = tuple(p for line in _render(code).split("\n") if (p := _paragraph(line)))
        sections.append(Section(heading, chapter, paragraphs, tuple(_captions(code))))
    return tuple(sections)


def _paragraph(line: str) -> str:
    """A line of prose without its broken sentences; empty when it is none."""
    if re.match(r"\s*[*#:;|!{}=<]", line):
        return ""
    whole = [s for s in sentences(_tidy(line)) if GAP not in s]
    text = " ".join(whole)
    return text if len(text) >= MIN_PARAGRAPH and re.search(r"[.!?][\"”')]*$", text) else ""


def _captions(code: Wikicode) -> Iterator[str]:
    for link in code.filter_wikilinks():
        if not re.match(r"\s*(file|image)\s*:", str(link.title), re.I) or link.text is None:
            continue
        caption = _tidy(_render(link.text).split("|")[-1])
        if GAP not in caption and len(caption.split()) >= 4 and "=" not in caption:
            yield caption


# --------------------------------------------------------------------------- nodes
def _render(code: Wikicode) -> str:
    return "".join(_node(node) for node in code.nodes)


def _node(node: Node) -> str:
    match node:
        case Text():
            return str(node.value)
        case HTMLEntity():
            return node.normalize()
        case Wikilink():
            return _link(node)
        case ExternalLink():
            return _render(node.title) if node.title else ""
        case Template():
            return _template(node)
        case Tag():
            return _tag(node)
        case _:  # comments, headings, arguments
            return ""


def _link(node: Wikilink) -> str:
    if re.match(r"\s*(file|image|category|[a-z]{2,3})\s*:", str(node.title), re.I):
        return ""
    return _render(node.text if node.text is not None else node.title)


def _tag(node: Tag) -> str:
    name = str(node.tag).strip().lower()
    if name in _LIST_TAGS:
        return "* " + (_render(node.contents) if node.contents else "")
    if name == "br":
        return " "
    if name in _INLINE_TAGS:
        return _render(node.contents) if node.contents else ""
    return "" if name in _SILENT_TAGS else GAP


def _template(node: Template) -> str:
    name = str(node.name).strip().lower().replace("_", " ")
    if name in _INLINE_TEMPLATES:
        values = [_render(p.value).strip() for p in node.params if not p.showkey]
        try:
            return _INLINE_TEMPLATES[name](values)
        except IndexError:
            return GAP
    return "" if _NOTE.match(name) else GAP


# --------------------------------------------------------------------------- text
def _tidy(text: str) -> str:
    """One line, without the leftovers of what was removed."""
    text = html.unescape(text).replace("\xa0", " ")
    previous = None
    while previous != text:  # parentheses nest
        previous = text
        text = re.sub(rf"\([^()]*{GAP}[^()]*\)|\(\W*\)", "", text)
    text = re.sub(r"'{2,}", "", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,.;:!?)])", r"\1", text)
    return re.sub(r"\(\s+", "(", text).strip()


_ABBREVIATION = re.compile(
    r"(\b(Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Gen|Col|Lt|Capt|Sgt|Sen|Rep|Gov|v|vs|etc|ca|cf|c|No|Vol|Inc|Co|Ltd"
    r"|Mt|Ft|approx|fl|ed|trans|[A-Z]|[ie]\.[eg]|[AaPp]\.[Mm]|[A-Z]\.[A-Z])|[A-Z]\.[A-Z]\.[A-Z])\.$"
)
_BOUNDARY = re.compile(r"(?<=[.!?])[\"”’')\]]*\s+(?=[\"“‘'(\[]?[A-Z0-9])")


@functools.lru_cache(maxsize=10_000)
def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a paragraph; abbreviations and initials do not end one."""
    found, start = [], 0
    for boundary in _BOUNDARY.finditer(text):
        if not _ABBREVIATION.search(text[: boundary.start()]):
            found.append(text[start : boundary.end()].strip())
            start = boundary.end()
    return tuple(s for s in (*found, text[start:].strip()) if s)
