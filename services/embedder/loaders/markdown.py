"""Markdown: the source itself is the text, so that nothing is lost; headings and blocks are found by a parser."""

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

from services.embedder.document import DocumentBuilder
from services.embedder.loaders.decoding import decode

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)(?:\n|\Z)", re.DOTALL)
_TITLE = re.compile(r"^title:\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE)
_CODE = frozenset({"fence", "code_block"})


def load(content: bytes, builder: DocumentBuilder) -> None:
    """Load Markdown."""
    source = decode(content).replace("\r\n", "\n").replace("\r", "\n")
    if front := _FRONT_MATTER.match(source):
        if title := _TITLE.search(front[1]):
            builder.title = title[1]
        builder.paragraph(front[1])
        builder.section()
        source = source[front.end() :]
    lines = source.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(source)
    done = 0  # lines that are in a block already
    for index, token in enumerate(tokens):
        if token.level != 0 or token.map is None or token.nesting < 0:
            continue
        start, end = token.map
        builder.paragraph("\n".join(lines[done:start]))  # such as link definitions, which are no blocks
        text = "\n".join(lines[start:end])
        if token.type == "heading_open":
            _heading(builder, int(token.tag[1:]), tokens[index + 1], text)
        else:
            builder.paragraph(text, keep_spaces=token.type in _CODE)
        done = max(done, end)
    builder.paragraph("\n".join(lines[done:]))


def _heading(builder: DocumentBuilder, level: int, inline: Token, source: str) -> None:
    words = "".join(
        child.content if child.type in {"text", "code_inline", "image"} else " " * (child.type == "softbreak")
        for child in inline.children or ()
    )
    if level == 1 and not builder.title:
        builder.title = words
    builder.heading(level, words, source=source)
