#!/usr/bin/env python3
"""Makes `demo/policies/loyalty-programme.pdf` from the Markdown beside this file, by the standard library alone.

It knows headings, paragraphs, list items and indented tables, in fonts that every PDF reader has. The same text
always gives the same bytes.
"""

import textwrap
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "loyalty-programme.md"
TARGET = SOURCE.parent.parent / "policies" / "loyalty-programme.pdf"

PAGE_WIDTH, PAGE_HEIGHT, MARGIN = 595, 842, 62  # A4, in points
# name of the font, its size, the line's height, the space above, the longest line in characters
TITLE = ("Bold", 18, 22, 0, 60)
HEADING = ("Bold", 12, 16, 10, 80)
TEXT = ("Text", 10, 14, 4, 96)
TABLE = ("Mono", 9, 12, 0, 90)
FONTS = {"Text": "Helvetica", "Bold": "Helvetica-Bold", "Mono": "Courier"}

Style = tuple[str, int, int, int, int]


def lines(markdown: str) -> list[tuple[Style, str]]:
    """The lines to set, each with its style; a style's space is above its first line only."""
    result: list[tuple[Style, str]] = []
    for block in markdown.splitlines():
        if block.startswith("    "):
            result.append((TABLE, block[4:]))
            continue
        if not block:
            continue
        prefix, style = "", TEXT
        if block.startswith("#"):
            style = TITLE if block.startswith("# ") else HEADING
        elif block.startswith("- "):
            prefix = "•  "
        wrapped = textwrap.wrap(block.lstrip("#- "), style[4] - len(prefix))
        for number, line in enumerate(wrapped):
            follows = (style[0], style[1], style[2], 0, style[4])
            result.append((follows if number else style, (" " * 4 if prefix and number else prefix) + line))
    return result


def pages(styled: list[tuple[Style, str]]) -> list[bytes]:
    """One content stream a page."""
    result: list[list[str]] = [[]]
    y = PAGE_HEIGHT - MARGIN
    for (font, size, height, above, _), line in styled:
        # a heading must not stand alone at the foot of a page
        if y - height - above < MARGIN + (3 * height if font == "Bold" else 0):
            result.append([])
            y = PAGE_HEIGHT - MARGIN
        y -= height + above
        escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        result[-1].append(f"BT /{font} {size} Tf {MARGIN} {y} Td ({escaped}) Tj ET")
    return ["\n".join(page).encode("cp1252") for page in result]


def document(contents: list[bytes], title: str) -> bytes:
    """The file: a catalogue, the pages with their contents, the fonts, the table of where objects start."""
    fonts = " ".join(
        f"/{name} << /Type /Font /Subtype /Type1 /BaseFont /{base} /Encoding /WinAnsiEncoding >>"
        for name, base in FONTS.items()
    )
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /Lang (en) >>",
        f"<< /Type /Pages /Count {len(contents)} /Kids [{kids}] /MediaBox [0 0 {PAGE_WIDTH} {PAGE_HEIGHT}] "
        f"/Resources << /Font << {fonts} >> >> >>".encode(),
        f"<< /Title ({title}) /Author (Meridian Travel) >>".encode("cp1252"),
    ]
    for number, content in enumerate(contents):
        objects.append(f"<< /Type /Page /Parent 2 0 R /Contents {5 + 2 * number} 0 R >>".encode())
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content))
    result = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    starts = []
    for number, body in enumerate(objects, 1):
        starts.append(len(result))
        result += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = len(result)
    size = len(objects) + 1
    result += b"xref\n0 %d\n0000000000 65535 f \n" % size
    result += b"".join(b"%010d 00000 n \n" % start for start in starts)
    result += b"trailer\n<< /Size %d /Root 1 0 R /Info 3 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, table)
    return bytes(result)


def main() -> None:
    """Write the PDF."""
    markdown = SOURCE.read_text(encoding="utf-8")
    title = markdown.splitlines()[0].lstrip("# ")
    TARGET.write_bytes(document(pages(lines(markdown)), title))
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
