"""The file formats of the lake: how rows are written, and which answers a file holds."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import orjson

from services.feedback.lake import Row, columns, with_text_times

BATCH_ROWS = 1_000  # a Parquet row group


class Writer(ABC):
    """Writes rows to a file of one format."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin the file."""
        self._file = file

    @abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Write a batch."""

    def finish(self) -> None:  # noqa: B027 - most formats have no end of their own
        """Write what ends the file."""


class JsonLines(Writer):
    """One JSON object a line."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write a line a row."""
        self._file.writelines(orjson.dumps(with_text_times(row), option=orjson.OPT_APPEND_NEWLINE) for row in rows)


class Parquet(Writer):
    """Apache Parquet, a row group a batch."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        # Imported here: it takes a third of a second and 60 MB, and only exports need it.
        from pyarrow import parquet

        self._parquet = parquet.ParquetWriter(file, _schema(), compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        """Write a row group."""
        import pyarrow as pa

        self._parquet.write_table(pa.table(columns(rows), schema=_schema()), row_group_size=BATCH_ROWS)

    def finish(self) -> None:
        """Write the footer."""
        self._parquet.close()


@functools.cache
def _schema() -> Any:
    import pyarrow as pa

    moment = pa.timestamp("ms", tz="UTC")
    part = pa.struct(
        [
            ("kind", pa.string()), ("reference", pa.string()), ("version", pa.string()), ("ordinal", pa.int32()),
            ("number", pa.int32()), ("used", pa.bool_()),
        ]
    )  # fmt: skip
    citation = pa.struct(
        [
            ("number", pa.int32()), ("document_id", pa.string()), ("version", pa.string()), ("start", pa.int32()),
            ("end", pa.int32()), ("quote", pa.string()), ("verified", pa.bool_()),
        ]
    )  # fmt: skip
    rating = pa.struct(
        [
            ("rater", pa.string()), ("rating", pa.float64()), ("scale", pa.int32()), ("text", pa.string()),
            ("rated_at", moment),
        ]
    )  # fmt: skip
    return pa.schema(
        [
            ("tenant", pa.string()), ("conversation_id", pa.string()), ("answer_id", pa.string()),
            ("asked_at", moment), ("profile_id", pa.string()), ("question", pa.string()), ("answer", pa.string()),
            ("answered", pa.bool_()), ("model", pa.string()), ("prompt_tokens", pa.int32()),
            ("answer_tokens", pa.int32()), ("cost", pa.float64()), ("latency_ms", pa.float64()),
            ("context", pa.list_(part)), ("citations", pa.list_(citation)), ("ratings", pa.list_(rating)),
            ("conversation_ratings", pa.list_(rating)), ("sentiment", pa.string()),
            ("sentiment_score", pa.float64()), ("satisfaction", pa.string()), ("classifier", pa.string()),
        ]
    )  # fmt: skip


WRITERS: dict[str, Callable[[IO[bytes]], Writer]] = {"parquet": Parquet, "jsonl": JsonLines}


def answer_ids(path: Path) -> set[str]:
    """The answers that a file of an export holds; what is no such file holds none."""
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            return {orjson.loads(line)["answer_id"] for line in lines}
    from pyarrow import parquet

    found: set[str] = set()
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["answer_id"]):
            found.update(batch.column(0).to_pylist())
    return found
