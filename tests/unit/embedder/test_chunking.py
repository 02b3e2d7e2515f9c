"""Chunking: exact positions, nothing left out, within the model's limit, and by structure."""

import re

from hypothesis import given, settings, strategies as st

from services.embedder.chunking import Chunk, Limits, chunks_of
from services.embedder.document import DocumentBuilder, Loaded
from services.embedder.loaders import load

LIMITS = Limits(aim=12, room=24, context=6)


def token_starts(text: str) -> list[int]:
    """Words and marks, as a model's tokenizer would find them."""
    return [found.start() for found in re.finditer(r"\w+|[^\w\s]", text)]


def cut(text: str, name: str = "a.md", title: str = "", limits: Limits = LIMITS) -> list[Chunk]:
    return chunks_of(load(text.encode(), name=name), title, token_starts, limits)


def words(count: int) -> str:
    return " ".join(f"w{n}" for n in range(count))


def test_neighbouring_paragraphs_of_a_section_share_a_chunk_up_to_the_aim() -> None:
    chunks = cut(f"{words(5)}\n\n{words(5)}\n\n{words(5)}")
    assert [len(token_starts(chunk.text)) for chunk in chunks] == [10, 5]


def test_a_small_rest_joins_the_chunk_before() -> None:
    assert len(cut(f"{words(12)}\n\n{words(2)}")) == 1


def test_sections_never_share_a_chunk_and_a_bare_heading_goes_with_what_follows() -> None:
    chunks = cut("# A\n\n## B\n\nb text\n\n## C\n\nc text")
    assert [chunk.text for chunk in chunks] == ["# A\n\n## B\n\nb text", "## C\n\nc text"]
    assert [chunk.headings for chunk in chunks] == [("A", "B"), ("A", "C")]


def test_what_is_embedded_is_the_title_the_headings_and_the_text() -> None:
    chunk = cut("# A\n\n## B\n\nb text", title="A")[0]
    assert chunk.context == "A > B"
    assert chunk.embedded == f"A > B\n{chunk.text}"


def test_a_text_that_begins_with_its_title_does_not_say_it_twice() -> None:
    (chunk,) = cut("How late?\n\nVery late.", "q.txt", "How late?")
    assert chunk.embedded == chunk.text


def test_long_paragraphs_are_cut_at_sentences_into_parts_of_about_equal_size() -> None:
    sentence = f"{words(6)}. "
    chunks = cut(sentence * 8, "a.txt")
    assert all(chunk.text.endswith(".") for chunk in chunks)
    sizes = [len(token_starts(chunk.text)) for chunk in chunks]
    assert max(sizes) <= LIMITS.room
    assert min(sizes) >= LIMITS.aim // 2


def test_headings_too_long_for_the_context_keep_the_innermost() -> None:
    (chunk,) = cut(f"# {words(4)}\n\n## {words(4)}x\n\ntext")
    assert chunk.context == f"{words(4)}x"


def test_rows_that_share_a_chunk_are_labelled_from_the_first_to_the_last() -> None:
    (chunk,) = cut("a,b\nx,\nz,\n", "t.csv")
    assert chunk.label == "row 2 to row 3"


def test_no_text_gives_no_chunks() -> None:
    assert cut("  \n\n ") == []


def test_equal_words_under_equal_headings_have_equal_hashes() -> None:
    one, other = cut("# A\n\ntext")[0], cut("# A\n\ntext\n\n# B\n\nmore")[0]
    assert one.hash == other.hash
    assert one.hash != cut("# B\n\ntext")[0].hash


@st.composite
def documents(draw: st.DrawFn) -> Loaded:
    builder = DocumentBuilder()
    text = st.text(st.sampled_from("ab .\n,é漢😀\t"), max_size=200) | st.text(max_size=40)
    for kind in draw(st.lists(st.sampled_from("hps"), max_size=8)):
        if kind == "h":
            builder.heading(draw(st.integers(1, 4)), draw(text))
        elif kind == "p":
            builder.paragraph(
                draw(text), label=draw(st.sampled_from(["", "page 1"])), glue=draw(st.sampled_from("\n "))
            )
        else:
            builder.section()
    return builder.build()


@given(documents(), st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_chunks_cover_all_text_in_order_at_exact_positions_within_the_limit(loaded: Loaded, title: str) -> None:
    chunks = chunks_of(loaded, title, token_starts, LIMITS)
    place = 0
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert loaded.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip() == chunk.text != ""
        assert loaded.text[place : chunk.start].strip() == ""
        assert len(token_starts(chunk.embedded)) <= LIMITS.room
        place = chunk.end
    assert loaded.text[place:].strip() == ""
