"""A report as a list of blocks, and its two forms: one self-contained HTML page, and Markdown."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""What the page may load and run: its own style and pictures; no script, nothing from elsewhere."""


@dataclass(frozen=True)
class Text:
    """A paragraph. Words in backticks are set as code, in every text of a document."""

    text: str


@dataclass(frozen=True)
class Table:
    """Columns after the first hold numbers, unless `words`."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""
    words: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure: its name (of the files beside the page), the drawing for wide and for narrow screens, the caption."""

    name: str
    title: str
    caption: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class Code:
    """Text in a box that opens on a click, and is open in print."""

    title: str
    text: str
    language: str = ""


@dataclass(frozen=True)
class Notes:
    """A list of remarks."""

    items: list[str]
    warning: bool = False


Block = Union[Text, Table, Picture, Code, Notes]  # noqa: UP007


@dataclass
class Section:
    """A heading and what stands under it, in order."""

    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Document:
    """A page: its title, the result in a sentence, what it was made from, and its sections."""

    title: str
    headline: str
    meta: str
    sections: list[Section] = field(default_factory=list)


def to_html(document: Document) -> str:
    """One page that needs nothing but itself. Everything that is not ours is escaped."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    body = "\n".join(
        f"<section><h2>{_inline(s.title)}</h2>\n{''.join(map(_html, s.blocks))}</section>" for s in document.sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(document.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="meta">{_inline(document.meta)}</p>\n<h1>{_inline(document.title)}</h1>\n'
        f'<p class="headline">{_inline(document.headline)}</p></header>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>\n"
    if isinstance(block, Notes):
        items = "".join(f"<li>{_inline(i)}</li>" for i in block.items)
        return f'<ul class="{"warnings" if block.warning else "notes"}">{items}</ul>\n'
    if isinstance(block, Code):
        return (
            f"<details><summary>{_inline(block.title)}</summary><pre><code>{html.escape(block.text)}</code></pre>"
            "</details>\n"
        )
    if isinstance(block, Picture):
        label = html.escape(block.title, quote=True)
        return (
            f'<figure id="{html.escape(block.name, quote=True)}" role="group" aria-label="{label}">'
            f"<h3>{_inline(block.title)}</h3>"
            f'<div class="wide">{block.wide}</div><div class="narrow">{block.narrow}</div>'
            f"<figcaption>{_inline(block.caption)}</figcaption></figure>\n"
        )
    head = "".join(f'<th scope="col">{_inline(h)}</th>' for h in block.head)
    rows = "".join(
        "<tr>" + "".join((f'<th scope="row">{_inline(c)}</th>' if i == 0 else f"<td>{_inline(c)}</td>")
                         for i, c in enumerate(row)) + "</tr>\n"
        for row in block.rows
    )  # fmt: skip
    caption = f'<p class="caption">{_inline(block.caption)}</p>' if block.caption else ""
    kind = ' class="words"' if block.words else ""
    return (
        f'<div class="box" tabindex="0"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>'
        f"</div>{caption}\n"
    )


def to_markdown(document: Document, figures: str) -> str:
    """The same as Markdown; `figures` is the folder of the pictures, relative to the file."""
    lines = [f"# {_md(document.title)}", "", f"**{_md(document.headline)}**", "", _md(document.meta), ""]
    for s in document.sections:
        lines += [f"## {_md(s.title)}", ""]
        for block in s.blocks:
            lines += [_markdown(block, figures), ""]
    return "\n".join(lines).rstrip() + "\n"


def _md(text: str) -> str:
    """Escape what Markdown would read, outside of backticks."""
    parts = re.split(r"(`[^`]+`)", text.replace("\n", " "))
    return "".join(p if p.startswith("`") and len(p) > 1 else re.sub(r"([\\*_\[\]<>|#`])", r"\\\1", p) for p in parts)


def _markdown(block: Block, figures: str) -> str:
    if isinstance(block, Text):
        return _md(block.text)
    if isinstance(block, Notes):
        return "\n".join(f"- {'⚠ ' if block.warning else ''}{_md(i)}" for i in block.items)
    if isinstance(block, Code):
        ticks = "`" * max(3, 1 + max((len(t) for t in re.findall(r"`+", block.text)), default=0))
        return f"{_md(block.title)}\n\n{ticks}{block.language}\n{block.text.rstrip()}\n{ticks}"
    if isinstance(block, Picture):
        return f"![{_md(block.title)}]({figures}/{block.name}.svg)\n\n{_md(block.caption)}"
    cells = [block.head, ["---"] * len(block.head), *block.rows]
    table = "\n".join("| " + " | ".join(c if i == 1 else _md(c).replace("|", "\\|") if "`" in c else _md(c)
                                        for c in row) + " |" for i, row in enumerate(cells))  # fmt: skip
    return f"{table}\n\n{_md(block.caption)}" if block.caption else table
