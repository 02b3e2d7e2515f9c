"""Loaders: each format's structure, and what is refused."""

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from pypdf import PdfWriter

from services.embedder.document import Loaded, normalised
from services.embedder.loaders import load
from services.kernel.jobs import PermanentError

POLICIES = Path(__file__).parents[3] / "demo" / "policies"
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def texts(loaded: Loaded) -> list[str]:
    return [loaded.text[block.start : block.end] for block in loaded.blocks]


def refused(content: bytes, media_type: str = "", name: str = "") -> str:
    with pytest.raises(PermanentError) as caught:
        load(content, media_type, name)
    return str(caught.value)


def docx(body: str, head: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        xml = f'{head}<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>'
        archive.writestr("word/document.xml", xml)
    return file.getvalue()


def pdf(*, pages: int = 0, password: str = "") -> bytes:
    writer = PdfWriter() if pages else PdfWriter(clone_from=POLICIES / "loyalty-programme.pdf")
    for _ in range(pages):
        writer.add_blank_page(200, 200)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_markdown_keeps_its_source_and_finds_headings() -> None:
    loaded = load(b"# Refunds\nIntro *now*.\n\n## Hotels\n\n- a\n- b\n\n| x | y |\n|---|---|\n| 1 | 2 |\n", name="r.md")
    assert loaded.title == "Refunds"
    assert [block.headings for block in loaded.blocks][-1] == ("Refunds", "Hotels")
    assert texts(loaded) == ["# Refunds", "Intro *now*.", "## Hotels", "- a\n- b", "| x | y |\n|---|---|\n| 1 | 2 |"]


def test_markdown_front_matter_gives_the_title_and_is_no_heading() -> None:
    loaded = load(b"---\ntitle: 'The rules'\ntags: a\n---\nText\n\n[1]: http://example.com\n", name="r.md")
    assert loaded.title == "The rules"
    assert [block.headings for block in loaded.blocks] == [(), (), ()]
    assert "[1]: http://example.com" in loaded.text


def test_markdown_headings_in_code_are_code() -> None:
    loaded = load(b"# A\n\n```\n# not a heading\n    indented\n```\n", name="r.md")
    assert loaded.blocks[-1].headings == ("A",)
    assert "    indented" in loaded.text


def test_html_leaves_out_what_no_reader_sees() -> None:
    loaded = load(
        b"<html><head><title>T</title><style>p{}</style></head><body><nav>menu</nav><h2>Bags</h2>"
        b"<div>before<p>in <b>bold</b></p>after</div><script>alert(1)</script>"
        b"<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><ul><li>one</li></ul></body></html>",
        media_type="text/html; charset=utf-8",
    )
    assert loaded.title == "T"
    assert texts(loaded) == ["Bags", "before", "in bold", "after", "a | b", "1 | 2", "- one"]
    assert loaded.blocks[-1].headings == ("Bags",)


def test_html_is_decoded_as_it_declares() -> None:
    loaded = load('<meta charset="windows-1251"><p>Привет</p>'.encode("cp1251"), name="a.html")
    assert loaded.text == "Привет"


def test_very_deeply_nested_html_is_read() -> None:
    assert "deep" in load(b"<div>" * 20_000 + b"deep", name="a.html").text


def test_plain_text_finds_capital_and_underlined_headings() -> None:
    loaded = load(b"TERMS\r\n\r\nfirst\r\nline\r\n\r\nPrices\n------\n\nsecond\n\n12345\n")
    assert texts(loaded) == ["TERMS", "first\nline", "Prices\n------", "second", "12345"]
    assert loaded.blocks[3].headings == ("TERMS", "Prices")


def test_a_pdf_has_its_pages_as_labels_and_chunks_never_span_them() -> None:
    loaded = load((POLICIES / "loyalty-programme.pdf").read_bytes(), name="loyalty.pdf")
    assert loaded.title.startswith("Meridian Circle")
    assert [block.label for block in loaded.blocks] == ["page 1", "page 2"]
    assert [block.group for block in loaded.blocks] == [0, 1]


def test_an_encrypted_pdf_is_refused_with_the_cure() -> None:
    assert "encrypted: save a copy without a password" in refused(pdf(password="secret"), name="a.pdf")


def test_a_broken_pdf_is_refused() -> None:
    assert "broken PDF" in refused(b"%PDF-1.7\n1 0 obj\n<<", name="a.pdf")


def test_a_blank_pdf_has_no_text_and_is_not_refused() -> None:
    assert load(pdf(pages=2), name="a.pdf").blocks == ()


def test_csv_rows_say_their_columns_and_are_labelled() -> None:
    loaded = load(b"name;city\nRiva;Split\n;Zadar\n", name="hotels.csv")
    assert texts(loaded) == ["name: Riva; city: Split", "city: Zadar"]
    assert [block.label for block in loaded.blocks] == ["row 2", "row 3"]


def test_csv_without_a_header_has_no_column_names() -> None:
    assert texts(load(b"1,Riva\n2,Zadar\n", name="h.csv")) == ["1; Riva", "2; Zadar"]


def test_json_lines_are_records_under_their_titles() -> None:
    loaded = load(b'{"_id": 1, "title": "Bags", "text": "Two bags.", "price": {"eur": 5}}\n\n[1, 2]\n', name="f.jsonl")
    assert texts(loaded) == ["Bags", "Two bags.\nprice.eur: 5", "1, 2"]
    assert loaded.blocks[1].headings == ("Bags",)
    assert loaded.blocks[2].label == "line 3"


def test_json_is_flattened_to_named_values() -> None:
    assert (
        load(b'{"a": {"b": [true, null, "x"]}, "c": [{"d": 1}]}', "application/json").text == "a.b: yes, , x\nc.1.d: 1"
    )


def test_json_nested_without_end_is_read_or_refused_but_never_breaks() -> None:
    with pytest.raises(PermanentError):
        load(b"[" * 100_000, "application/json")


def test_a_wrong_json_line_is_named() -> None:
    assert "line 2" in refused(b'{"a": 1}\n{"a": \n', name="f.jsonl")


def test_docx_has_headings_by_style_and_rows() -> None:
    body = (
        '<w:p><w:pPr><w:pStyle w:val="Title"/></w:pPr><w:r><w:t>Terms</w:t></w:r></w:p>'
        '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Bags</w:t></w:r></w:p>'
        "<w:p><w:r><w:t>Two </w:t></w:r><w:r><w:t>bags.</w:t></w:r></w:p>"
        "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc>"
        "<w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
    )
    loaded = load(docx(body), name="a.docx")
    assert loaded.title == "Terms"
    assert texts(loaded) == ["Terms", "Bags", "Two bags.", "a | b"]
    assert loaded.blocks[2].headings == ("Bags",)


def test_a_docx_that_unpacks_without_end_is_refused() -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as part:
        for _ in range(65):
            part.write(b" " * (1 << 20))
    assert "unpacks to more than 64 MiB" in refused(bomb.getvalue(), name="a.docx")


def test_a_docx_with_entities_is_refused() -> None:
    assert "entities" in refused(docx("", '<!DOCTYPE x [<!ENTITY a "a">]>'), name="a.docx")


def test_what_is_no_docx_is_refused() -> None:
    assert "not a DOCX" in refused(b"PK\x03\x04 word/ nonsense", name="a.docx")


@pytest.mark.parametrize("content", [b"", b" \n\t ", "\ufeff".encode()])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.pdf", "a.csv", "a.json", "a.docx", ""])
def test_blank_documents_have_no_text_whatever_their_format(content: bytes, name: str) -> None:
    if content.strip() and name in {"a.pdf", "a.docx", "a.json"}:
        return  # a mark alone is no file of these
    assert load(content, name=name).text == ""


def test_binary_content_is_refused() -> None:
    assert "binary" in refused(bytes(range(256)) * 10, name="notes.txt")


def test_unknown_media_types_are_refused_by_name() -> None:
    assert "image/png" in refused(b"\x89PNG", "image/png", "logo.png")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Grüße".encode(), "Grüße"),
        ("Grüße".encode("utf-16"), "Grüße"),
        ("\ufeffGrüße".encode(), "Grüße"),
        ("Grüße, 5 €".encode("cp1252"), "Grüße, 5 €"),
    ],
)
def test_text_is_decoded_by_its_mark_or_as_utf8_or_as_one_byte_characters(content: bytes, expected: str) -> None:
    assert load(content).text == expected


def test_hidden_characters_are_taken_out_and_letters_composed() -> None:
    assert normalised("in\u00advisible\u200b \x00e\u0301  x \r\ny\ud800") == "invisible é x\ny\ufffd"


@given(st.binary(max_size=400), st.sampled_from(["a.txt", "a.md", "a.html", "a.pdf", "a.csv", "a.jsonl", "a.docx"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_and_blocks_cover_all_text_in_order(content: bytes, name: str) -> None:
    try:
        loaded = load(content, name=name)
    except PermanentError as error:
        assert name in str(error)
        return
    place = 0
    for block in loaded.blocks:
        assert loaded.text[place : block.start].strip() == ""
        assert block.start < block.end
        place = block.end
    assert loaded.text[place:].strip() == ""
    loaded.text.encode()
