"""The connection to OpenSearch, and the settings of it: the only module that imports its client.

[opensearch]                       # chunks of a cluster: words and vectors
url = "https://search.internal:9200"
username = "headwater"
password = "…"                     # or HEADWATER__OPENSEARCH__PASSWORD
ca = "/etc/headwater/ca.pem"       # of a certificate that the system does not know
prefix = "headwater"               # of every index
shards = 1                         # of an index that is made
replicas = 1
timeout_s = 30.0
"""

import asyncio
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from opensearchpy import AsyncOpenSearch, OpenSearchException, TransportError

from services.kernel.errors import InvalidInputError, UnavailableError
from services.kernel.jobs import PermanentError
from services.kernel.retry import backoff_s
from services.kernel.settings import Section

_PREFIX = re.compile("[a-z0-9][a-z0-9-]{0,99}")
SHARDS_MAX, REPLICAS_MAX = 1024, 16
BULK_BYTES = 4 << 20
NOT_FOUND, CONFLICT, TOO_MANY, BROKEN = 404, 409, 429, (500, 502, 503, 504)
WRONG = (400, 413)  # of an item: it will be refused again
ATTEMPTS = 6
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class OpenSearchSettings:
    """Where OpenSearch is: the table [opensearch].

    Attributes:
        url: of the cluster, with its port.
        username, password: who asks; empty where nobody needs to say so.
        ca: a file with the certificate authority, when the system does not know it.
        prefix: begins the name of every index.
        shards, replicas: of an index that is made.
        timeout_s: the longest that a request may take, in seconds.
    """

    url: str
    username: str = ""
    password: str = ""
    ca: str = ""
    prefix: str = "headwater"
    shards: int = 1
    replicas: int = 1
    timeout_s: float = 30.0

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "OpenSearchSettings":
        """Read the table [opensearch]; raises InvalidInputError naming what is wrong with it."""
        read = Section("opensearch", table, cls(""))
        settings = cls(
            url=read.url("url"),
            username=read.text("username"),
            password=read.text("password"),
            ca=read.text("ca"),
            prefix=read.text("prefix"),
            shards=read.whole("shards", 1, SHARDS_MAX),
            replicas=read.whole("replicas", 0, REPLICAS_MAX),
            timeout_s=read.number("timeout_s", 0.1, 3600),
        )
        if not settings.url:
            raise read.refusal("url", 'is missing: give it as a text, "https://…"')
        if (
            not settings.prefix
            or settings.prefix != settings.prefix.lower()
            or set(settings.prefix) & set(r'\/*?"<>| ,#:')
        ):
            raise read.refusal(
                "prefix", "must be lower-case letters, digits and hyphens: names of indices begin with it"
            )
        return settings


class BusyError(UnavailableError):
    """It has too much to do; a little later it may have less."""


class OpenSearchClient:
    """Asks OpenSearch; what it cannot answer at the moment is an UnavailableError."""

    def __init__(self, settings: OpenSearchSettings) -> None:
        """Connect when it is first asked; raises InvalidInputError when `ca` is no certificate."""
        self._settings = settings
        options: dict[str, Any] = {}
        if settings.url.startswith("https:"):
            try:
                options["ssl_context"] = ssl.create_default_context(cafile=settings.ca or None)
            except OSError as error:  # the file is missing, or holds no certificate
                raise InvalidInputError(f"[opensearch] ca: {settings.ca}: {error}") from error
        if settings.username:
            options["http_auth"] = (settings.username, settings.password)
        self._client = AsyncOpenSearch(
            hosts=[settings.url],
            timeout=settings.timeout_s,
            max_retries=0,  # whoever asks knows what may be asked again
            serializer=_Serializer(),
            **options,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(
        self, method: str, path: str, body: Any = None, *, ignore: Sequence[int] = (), **params: Any
    ) -> dict[str, Any]:
        """Return the answer to a request.

        Args:
            method, path: of HTTP.
            body: is written as JSON; bytes are lines of JSON.
            ignore: statuses that are answers, too.
            params: of the query.

        Raises:
            UnavailableError: it cannot be reached, is too busy (BusyError), or an index is missing.
            InvalidInputError: it refuses the request or the user.
        """
        headers = {"content-type": "application/x-ndjson" if isinstance(body, bytes) else "application/json"}
        words = {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in params.items()
        } | {"ignore": tuple(ignore)}
        try:
            answer = await self._client.transport.perform_request(
                method, path, headers=headers, params=words, body=body
            )
        except TransportError as error:
            status, reason = error.status_code, _reason(error.info)
            if status == TOO_MANY:
                raise BusyError(f"OpenSearch at {self._settings.url}: {status} {reason}") from error
            if not isinstance(status, int) or status in {*BROKEN, NOT_FOUND}:
                raise UnavailableError(f"OpenSearch at {self._settings.url}: {status} {reason}") from error
            what = "check [opensearch] username and password" if status in {401, 403} else f"{method} {path}"
            raise InvalidInputError(f"OpenSearch at {self._settings.url} refuses: {status} {reason}; {what}") from error
        except OpenSearchException as error:
            raise UnavailableError(f"OpenSearch at {self._settings.url}: {error}") from error
        return answer if isinstance(answer, dict) else {}

    async def search_many(self, index: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """Return the answers to several searches of one index at once, whole or not at all; None without the index."""
        # A shard that does not answer must not make the result look smaller than it is.
        head = {"index": index, "allow_partial_search_results": False}
        lines = b"".join(orjson.dumps(part) + b"\n" for body in bodies for part in (head, body))
        answers: list[dict[str, Any]] = (await self.ask("POST", "/_msearch", lines))["responses"]
        for answer in answers:
            if answer["status"] == NOT_FOUND:
                return None
            if "error" in answer:
                raise UnavailableError(f"OpenSearch at {self._settings.url}: {_reason(answer)}")
        return answers

    async def write(self, actions: Sequence[tuple[str, bytes]]) -> set[int]:
        """Do the actions of bulk requests, in slices; what it is too busy for, again a little later.

        Args:
            actions: what each is about, for errors, and its lines of JSON.

        Returns:
            Which were refused because the document is another one than was expected, or is not there, by their places.

        Raises:
            PermanentError: one is refused for what it holds. Those beside it are done.
            UnavailableError: it cannot be reached, or stays too busy.
        """
        lost: set[int] = set()
        left, why = list(range(len(actions))), ""
        for attempt in range(1, ATTEMPTS + 1):
            busy, refused = [], list[str]()
            for places in _slices(left, actions):
                body = b"".join(actions[place][1] for place in places)
                try:
                    answer = await self.ask("POST", "/_bulk", body)
                except BusyError as error:
                    busy += places
                    why = str(error)
                    continue
                for place, item in zip(places, answer["items"], strict=True):
                    (result,) = item.values()
                    if result["status"] in {CONFLICT, NOT_FOUND}:
                        lost.add(place)
                    elif result["status"] in WRONG:
                        refused.append(f"{actions[place][0]}: OpenSearch refuses it: {_reason(result)}")
                    elif result["status"] >= 300:  # too much to do, a full disk, an index that is closed for writing
                        busy.append(place)
                        why = _reason(result)
            if refused:
                raise PermanentError("; ".join(refused[:3]))
            if not busy:
                return lost
            left = busy
            await asyncio.sleep(backoff_s(attempt, base_s=BACKOFF_FIRST_S, cap_s=BACKOFF_MAX_S))
        raise UnavailableError(f"OpenSearch at {self._settings.url} does not take what is written: {why}")


class _Serializer:
    """JSON by orjson."""

    mimetype = "application/json"

    def loads(self, text: str) -> Any:
        return orjson.loads(text)

    def dumps(self, data: Any) -> bytes:
        return data if isinstance(data, bytes) else orjson.dumps(data)


def _reason(answer: Any) -> str:
    """Return why something was refused, with the cause of it, in the engine's words."""
    error = answer.get("error") if isinstance(answer, dict) else answer
    if not isinstance(error, dict):
        return str(error)
    causes = [error, *(error.get("root_cause") or [])[:1], *([error["caused_by"]] if "caused_by" in error else [])]
    return ": ".join(dict.fromkeys(str(cause.get("reason")) for cause in causes if cause.get("reason")))


def _slices(places: Sequence[int], actions: Sequence[tuple[str, bytes]]) -> list[list[int]]:
    slices: list[list[int]] = []
    size = BULK_BYTES
    for place in places:
        length = len(actions[place][1])
        if size + length > BULK_BYTES:
            slices.append([])
            size = 0
        slices[-1].append(place)
        size += length
    return slices
