"""A small reader of the LaTeX that tables are written in, for where no LaTeX is installed."""

import re

_COMMANDS = {
    "begin", "end", "toprule", "midrule", "bottomrule", "cmidrule", "multicolumn", "caption",
    "label", "centering", "small", "footnotesize", "setlength", "tabcolsep", "resizebox",
    "linewidth", "textbf", "par", "pm", "times", "ge", "le", "to", "S", "dag", "Delta",
    "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
    "smallskip", "ifdim", "width", "else", "fi", "allowbreak",
}  # fmt: skip


def check_latex(text: str) -> int:
    """Raise AssertionError for what LaTeX would refuse; returns the number of table rows read.

    Braces and environments must close, commands must be known, special characters escaped, and
    every row must fill exactly the columns of its table.
    """
    body = "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in text.splitlines())
    assert body.isascii(), f"not ASCII: {re.findall(r'[^ -~]', body)[:5]}"
    _check_braces(body)
    unknown = set(re.findall(r"\\([A-Za-z]+)", body)) - _COMMANDS
    assert not unknown, f"unknown commands {unknown}"
    plain = re.sub(r"\\[&%$#_{}\\]", "", re.sub(r"\\[A-Za-z]+", "", body))
    plain = re.sub(r"(tab:\w+)", "", plain)
    assert not re.search(r"[#_^~]", plain), "a special character is not escaped"
    assert plain.count("$") % 2 == 0, "a formula is not closed"
    rows = 0
    for _, columns, content in re.findall(
        r"\\begin\{(tabular)\}\{((?:[lrc]|p\{[^}]*\})+)\}(.*?)\\end\{\1\}", body, re.S
    ):
        width = len(re.sub(r"p\{[^}]*\}", "p", columns))
        content = re.sub(r"\\caption\{.*?\}\\label\{.*?\} \\\\", "", content, flags=re.S)
        for row in _rows(content):
            assert _width(row) == width, f"{_width(row)} cells in {width} columns: {row!r}"
            rows += 1
    assert rows, "no table found"
    return rows


def _check_braces(body: str) -> None:
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", body):
        depth += 1 if brace == "{" else -1
        assert depth >= 0, "a brace is closed that was not opened"
    assert depth == 0, "a brace is not closed"
    opened: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if what == "begin":
            opened.append(name)
        else:
            assert opened
            assert opened.pop() == name, f"{name} is closed out of turn"
    assert not opened, f"{opened} are not closed"


def _rows(content: str) -> list[str]:
    rules = r"\\(?:toprule|midrule|bottomrule)|\\cmidrule\(lr\)\{[\d-]+\}"
    parts = re.sub(rules, "", content).split(r"\\")
    assert not parts[-1].strip(), f"a row has no end: {parts[-1]!r}"
    assert not any(part.lstrip().startswith("[") for part in parts), "a row begins with a bracket"
    return parts[:-1]


def _width(row: str) -> int:
    spans = [int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", row)]
    return len(re.findall(r"(?<!\\)&", row)) + 1 + sum(spans) - len(spans)
