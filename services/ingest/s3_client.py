"""A bucket of S3, or of a store with the same API: its objects listed and read."""

import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from services.ingest.decoders.common import DecodeError, instant
from services.ingest.s3_signing import Credentials, encoded_path, encoded_query, signed_headers
from services.kernel.errors import UnavailableError

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

TIMEOUT_S = 60.0
_ERROR_BYTES = 4096
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class Listed(NamedTuple):
    """An object as a listing tells of it: its key, a hash of its content, and its size in bytes."""

    key: str
    etag: str
    size: int


class Object(NamedTuple):
    """An object as it is now."""

    content: bytes
    etag: str
    media_type: str
    changed_at: tuple[int, int] | None


class S3Client:
    """One bucket."""

    def __init__(
        self, endpoint: str, region: str, bucket: str, credentials: Credentials, clock: Callable[[], float]
    ) -> None:
        self._endpoint = endpoint.rstrip("/") or f"https://s3.{region}.amazonaws.com"
        self._region, self._bucket, self._credentials, self._clock = region, bucket, credentials, clock
        self._session: ClientSession | None = None

    async def read(self, key: str, bytes_max: int) -> Object | None:
        """An object as it is now; None when it is not there.

        Raises:
            DecodeError: it is too long, or archived.
            UnavailableError: the store cannot be asked now, or does not allow it.
        """
        async with self._get(f"/{self._bucket}/{key}", {}) as response:
            if response.status == 200:
                if (response.content_length or 0) > bytes_max:
                    raise _too_long(self._bucket, key, bytes_max)
                return await self._object(response, key, bytes_max)
            code = await _code_of(response)
        if code == "NoSuchKey" or (response.status == 404 and not code):
            return None
        if code == "InvalidObjectState":
            raise DecodeError(f"s3://{self._bucket}/{key} is archived", "restore it, and put it again")
        raise self._refused(response.status, code)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        """The objects whose keys begin with a prefix, in the order of their keys.

        Raises:
            UnavailableError: the store cannot be asked now, or does not allow it.
        """
        query = {"list-type": "2", "prefix": prefix}
        while True:
            async with self._get(f"/{self._bucket}", query) as response:
                if response.status != 200:
                    raise self._refused(response.status, await _code_of(response))
                page = _parsed(await response.read())
            space = _NAMESPACE if page.tag.startswith("{") else ""
            for item in page.iterfind(f"{space}Contents"):
                size = item.findtext(f"{space}Size") or "0"
                yield Listed(item.findtext(f"{space}Key") or "", item.findtext(f"{space}ETag") or "", int(size))
            token = page.findtext(f"{space}NextContinuationToken")
            if page.findtext(f"{space}IsTruncated") != "true" or not token:
                return
            query = {**query, "continuation-token": token}

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def _get(self, path: str, query: Mapping[str, str]) -> "AsyncIterator[ClientResponse]":
        from aiohttp import ClientError, ClientSession, ClientTimeout
        from yarl import URL

        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=TIMEOUT_S))
        path = encoded_path(path)
        url = URL(f"{self._endpoint}{path}" + (f"?{encoded_query(query)}" if query else ""), encoded=True)
        host = url.host or ""
        if not url.is_default_port():
            host = f"{host}:{url.port}"
        now = datetime.fromtimestamp(self._clock(), UTC)
        headers = signed_headers(self._credentials, self._region, host, path, query, now=now)
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                yield response
        except (ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"the object store {self._endpoint} cannot be reached ({error!r:.80})") from error

    async def _object(self, response: "ClientResponse", key: str, bytes_max: int) -> Object:
        content = bytearray()
        async for chunk in response.content.iter_chunked(1 << 20):
            content += chunk
            if len(content) > bytes_max:
                raise _too_long(self._bucket, key, bytes_max)
        kind, headers = response.content_type, response.headers
        kind = "" if kind.endswith("/octet-stream") else kind
        return Object(bytes(content), headers.get("ETag", ""), kind, _time(headers.get("Last-Modified")))

    def _refused(self, status: int, code: str) -> UnavailableError:
        return UnavailableError(
            f"the object store {self._endpoint} answers {status} {code} for bucket {self._bucket!r}: "
            "correct [[ingest.buckets]], or what the user may do there"
        )


def _too_long(bucket: str, key: str, bytes_max: int) -> DecodeError:
    return DecodeError(
        f"s3://{bucket}/{key} has more than {bytes_max:,} bytes", "split it, or raise document_bytes_max in [ingest]"
    )


async def _code_of(response: "ClientResponse") -> str:
    """The store's own name of an error, where it gives one."""
    body = await response.content.read(_ERROR_BYTES)
    start, end = body.find(b"<Code>"), body.find(b"</Code>")
    return body[start + 6 : end].decode(errors="replace") if 0 <= start < end else ""


def _parsed(body: bytes) -> ET.Element:
    try:
        return ET.fromstring(body)  # noqa: S314 - written by the store that is configured
    except ET.ParseError as error:
        raise UnavailableError(f"the object store does not answer as S3 ({error}): correct the endpoint") from error


def _time(text: str | None) -> tuple[int, int] | None:
    """Seconds and nanoseconds of a time as HTTP writes it."""
    from email.utils import parsedate_to_datetime

    try:
        return instant(parsedate_to_datetime(text).isoformat()) if text else None
    except (DecodeError, TypeError, ValueError):
        return None
