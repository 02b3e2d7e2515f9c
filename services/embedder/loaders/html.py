"""HTML: what a reader sees, block by block; navigation, scripts and styles are left out."""

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from services.embedder.document import DocumentBuilder
from services.embedder.loaders.decoding import decode

_CHARSET = re.compile(rb"charset=[\"']?([\w-]+)", re.IGNORECASE)
_UNSEEN = ("script", "style", "noscript", "template", "nav", "svg", "iframe", "object", "head", "button", "select")
_BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure footer "
        "form h1 h2 h3 h4 h5 h6 header hr html li main menu ol p pre section "
        "summary table tbody td tfoot th thead tr ul",
    )
)
_CELLS = frozenset({"td", "th"})
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


def load(content: bytes, builder: DocumentBuilder) -> None:
    """Load HTML."""
    declared = _CHARSET.search(content[:2048])
    tree = LexborHTMLParser(decode(content, declared[1].decode() if declared else ""))
    title = tree.css_first("title")
    builder.title = title.text() if title is not None else ""
    tree.strip_tags(list(_UNSEEN))
    if tree.body is None:
        return
    for tag, text in _blocks(tree.body):
        if tag in _HEADINGS:
            words = " ".join(text.split())
            if not builder.title:
                builder.title = words
            builder.heading(_HEADINGS[tag], words)
        elif tag == "pre":
            builder.paragraph(text, keep_spaces=True)
        elif tag == "li":
            builder.paragraph(f"- {text.strip()}" if text.strip() else "", glue="\n")
        else:
            builder.paragraph(text, glue="\n" if tag == "tr" else "\n\n")


def _blocks(body: LexborNode) -> Iterator[tuple[str, str]]:
    """The visible blocks in order: tag and text. A row's cells are one block."""
    current: tuple[int, str] = (0, "")
    cell = 0
    parts: list[str] = []
    for node in body.traverse(include_text=True):
        if node.tag == "br":
            parts.append("\n")
        if node.tag != "-text":
            continue
        inner = _block_of(node)
        row = _row_of(inner) if inner.tag in _CELLS else inner
        if row.mem_id != current[0]:
            yield current[1], "".join(parts)
            current, parts, cell = (row.mem_id, row.tag or ""), [], inner.mem_id
        if inner.mem_id != cell:
            parts.append(" | ")
            cell = inner.mem_id
        words = node.text(deep=False) or ""
        parts.append(words if current[1] == "pre" else re.sub(r"\s+", " ", words))
    yield current[1], "".join(parts)


def _block_of(node: LexborNode) -> LexborNode:
    while node.parent is not None and node.tag not in _BLOCKS:
        node = node.parent
    return node


def _row_of(cell: LexborNode) -> LexborNode:
    node = cell
    while node.parent is not None and node.tag != "tr":
        node = node.parent
    return node if node.tag == "tr" else cell
