"""PDF: the text of each page, labelled as the document numbers its pages."""

import io
import logging

from pypdf import PdfReader
from pypdf.errors import DependencyError, PyPdfError

from services.embedder.document import DocumentBuilder
from services.embedder.loaders import TEXT_CHARACTERS_MAX
from services.kernel.enrichment import PermanentError

# It tells of every small flaw in a file, by the thousand.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)


def load(content: bytes, builder: DocumentBuilder) -> None:
    """Load a PDF; one without any text, but with images, is refused: it has to be recognised first."""
    try:
        _load_pages(_opened(content), builder)
    except PermanentError:
        raise
    except DependencyError as error:  # a cipher that needs another package
        raise PermanentError("it is encrypted: save a copy without a password") from error
    except PyPdfError as error:
        raise PermanentError(f"it is a broken PDF ({error}): open it in a viewer and save it again") from error
    except Exception as error:  # a malformed file makes the parser fail in any way, such as KeyError or RecursionError
        raise PermanentError(
            f"it is a broken PDF ({type(error).__name__}: {error}): open it in a viewer and save it again"
        ) from error


def _opened(content: bytes) -> PdfReader:
    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise PermanentError("it is encrypted: save a copy without a password")
    return reader


def _load_pages(reader: PdfReader, builder: DocumentBuilder) -> None:
    title = reader.metadata.title if reader.metadata is not None else None
    builder.title = title or ""
    labels = reader.page_labels
    scanned = 0
    for page, label in zip(reader.pages, labels, strict=True):
        builder.section()
        before = builder.length
        for paragraph in (page.extract_text() or "").split("\n\n"):
            builder.paragraph(paragraph, label=f"page {label}")
        if builder.length == before:
            scanned += "/XObject" in (page.get("/Resources") or {})
        if builder.length > TEXT_CHARACTERS_MAX:
            return  # whoever called refuses it; reading on would only cost time
    if not builder.length and scanned:
        raise PermanentError(f"none of its {len(labels)} pages has text, only images: run text recognition on it first")
