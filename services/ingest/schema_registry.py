"""The client of a schema registry that speaks Confluent's HTTP API. A schema's number means the same for ever.

What is no answer of the registry (it is away, slow, or refuses the user) is UnavailableError: records wait for it, and
none is given up. Only its own answer that there is no such schema, or one that is not Avro, is the record's fault.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from services.ingest.decoders.avro import Schema, compiled
from services.ingest.decoders.common import DecodeError
from services.ingest.settings import SchemaRegistrySettings
from services.kernel.errors import InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from aiohttp import ClientSession

TIMEOUT_S = 10.0
SCHEMAS_MAX = 10_000  # that are remembered: far more than an installation has tables
FAULTS_S = 60.0  # how long it is remembered that there is no such schema
_NO_SUCH_SCHEMA = 40403


class SchemaRegistry:
    """The schemas that are known, and the way to the others."""

    def __init__(self, settings: SchemaRegistrySettings) -> None:
        try:
            import fastavro  # noqa: F401 - asks at the start, not with the first record
        except ImportError:
            raise InvalidInputError("[ingest.schema_registry] needs Avro: pip install 'headwater[avro]'") from None
        self._settings = settings
        self._session: ClientSession | None = None
        self.schemas: dict[int, Schema | DecodeError] = {}

    async def fetch(self, schema_id: int) -> None:
        """Make a schema known.

        Raises:
            UnavailableError: the registry cannot be asked now.
        """
        if len(self.schemas) >= SCHEMAS_MAX:
            self.schemas.clear()
        answer = await self._answer(schema_id)
        try:
            self.schemas[schema_id] = _compiled(schema_id, answer)
        except DecodeError as error:
            self.schemas[schema_id] = error
            asyncio.get_running_loop().call_later(FAULTS_S, self.schemas.pop, schema_id, None)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _answer(self, schema_id: int) -> dict[str, Any]:
        from aiohttp import ClientError, ClientSession, ClientTimeout, encode_basic_auth

        if self._session is None:
            user, password = self._settings.username, self._settings.password
            headers = {"Authorization": encode_basic_auth(user, password)} if user else {}
            self._session = ClientSession(timeout=ClientTimeout(total=TIMEOUT_S), headers=headers)
        url = f"{self._settings.url.rstrip('/')}/schemas/ids/{schema_id}"
        try:
            async with self._session.get(url) as response:
                status, body = response.status, await response.read()
        except (ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"the schema registry {url} cannot be reached ({error!r:.80}): try again") from error
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if isinstance(answer, dict) and (status == 200 or answer.get("error_code") == _NO_SUCH_SCHEMA):
            return answer
        raise UnavailableError(f"the schema registry {url} answers {status}: correct [ingest.schema_registry]")


def _compiled(schema_id: int, answer: dict[str, Any]) -> Schema:
    if answer.get("error_code") == _NO_SUCH_SCHEMA:
        raise DecodeError(f"the registry knows no schema {schema_id}", "name the registry that the writer used")
    if answer.get("schemaType", "AVRO") != "AVRO":
        raise DecodeError(f"schema {schema_id} is {answer['schemaType']!r:.20}", "write Avro: AvroConverter")
    if answer.get("references"):
        raise DecodeError(f"schema {schema_id} refers to others", "register schemas that are whole")
    return compiled(str(answer.get("schema")))
