"""The gRPC edge: requests in, messages to the log and rows of the tables out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from headwater.common.v1 import common_pb2
from headwater.feedback.v1 import events_pb2, service_pb2 as pb, service_pb2_grpc
from services.feedback.answers import SCALE_MAX, key_of_event, milliseconds, rating_value
from services.feedback.export import Target
from services.feedback.exporter import Exporter
from services.feedback.history import Imported, imported
from services.feedback.ports import KpiQuery, KpiReader
from services.feedback.projection import kpi_event
from services.feedback.settings import Settings
from services.kernel import topics
from services.kernel.errors import InvalidInputError, PermissionDeniedError, StaleContextError
from services.kernel.log import (
    DEFAULT_TENANT,
    Log,
    Message,
    Offsets,
    decode_token,
    encode_token,
    key_of,
    message_of,
    position_of,
)

TEXT_MAX = 64 << 10  # characters of a rating's text
ID_MAX = 512  # characters of an id
FUTURE_MAX_MS = 24 * 60 * 60 * 1000  # a rating cannot be of a later time: no other could replace it
LIMIT, WAIT_S = 10_000, 5.0
CAUGHT_UP_S = 1.0  # how long a query without a token waits for what is in the log already
SLICE = 500  # rows that are made into messages before others have their turn
REFUSED_MAX = 100
APPEND_LINES = 250
_FORMATS = {
    pb.EXPORT_FORMAT_UNSPECIFIED: "parquet",
    pb.EXPORT_FORMAT_PARQUET: "parquet",
    pb.EXPORT_FORMAT_JSON_LINES: "jsonl",
}
Context = grpc.aio.ServicerContext[Any, Any]


class FeedbackServicer(service_pb2_grpc.FeedbackServiceServicer):
    """Serves `FeedbackService`."""

    def __init__(
        self,
        log: Log,
        reader: KpiReader,
        exporter: Exporter,
        settings: Settings,
        *,
        clock: Callable[[], float],
        answers_group: str,
        kpis_group: str,
    ) -> None:
        """Wire it; the groups are those that a query waits for, one after the other."""
        self._log, self._reader, self._exporter = log, reader, exporter
        self._settings, self._clock = settings, clock
        self._answers_group, self._kpis_group = answers_group, kpis_group

    # Ratings ----------------------------------------------------------------------------------------------------

    async def Rate(self, request: pb.RateRequest, context: Context) -> pb.RateResponse:
        """Put a rating on the log; it is on the disk when this answers."""
        del context
        message = rating_message(request.rating, int(self._clock() * 1000))
        return pb.RateResponse(position_token=encode_token(await self._log.append([message])))

    # KPIs -------------------------------------------------------------------------------------------------------

    async def GetKpis(self, request: pb.GetKpisRequest, context: Context) -> pb.GetKpisResponse:
        """Return KPIs that have seen at least what was asked for."""
        del context
        if request.limit < 0:
            raise InvalidInputError("GetKpis: limit must not be negative")
        await self._wait(request)
        limit = request.limit or LIMIT
        since_ms = milliseconds(request.since, 0) if request.HasField("since") else -1
        query = KpiQuery(request.tenant or DEFAULT_TENANT, list(request.kpis), since_ms, request.window)
        rows = await asyncio.to_thread(self._reader.read, query, limit + 1)
        watermark_ms = self._settings.event_time.watermark(self._reader.newest_ms(query.tenant))
        response = pb.GetKpisResponse(too_late=self._reader.too_late(query.tenant), truncated=len(rows) > limit)
        if watermark_ms is not None:
            response.watermark.FromMilliseconds(watermark_ms)
        for begin in range(0, min(len(rows), limit), SLICE):
            part = rows[begin : min(begin + SLICE, limit)]
            response.kpis.extend(kpi_event(row, watermark_ms) for row in part)
            await asyncio.sleep(0)
        return response

    async def _wait(self, request: pb.GetKpisRequest) -> None:
        if request.at_least:
            given = request.at_least_timeout if request.HasField("at_least_timeout") else None
            wait_s = WAIT_S if given is None else max(0.0, given.ToTimedelta().total_seconds())
            if not await self._reached(decode_token(request.at_least), wait_s):
                raise StaleContextError(
                    f"GetKpis: the KPIs have not seen the demanded position within {wait_s:g} s: ask again, or wait"
                )
            return
        # Whoever has just rated expects to see it. A busy installation is not waited for.
        names = (topics.CONVERSATIONS, topics.RATINGS)
        ends = {(name, p): end for name in names for p, end in enumerate(await self._log.end(name))}
        await self._reached(position_of(ends), CAUGHT_UP_S)

    async def _reached(self, position: common_pb2.Position, wait_s: float) -> bool:
        """Wait until the KPIs show everything up to a position; False after `wait_s`."""
        deadline = time.monotonic() + wait_s
        if not await self._log.wait_committed([self._answers_group], position, wait_s):
            return False
        ends = enumerate(await self._log.end(topics.ANSWERS_TOUCHED))
        touched = position_of({(topics.ANSWERS_TOUCHED, partition): end for partition, end in ends})
        return await self._log.wait_committed([self._kpis_group], touched, max(0.0, deadline - time.monotonic()))

    async def WatchKpis(self, request: pb.WatchKpisRequest, context: Context) -> AsyncIterator[pb.WatchKpisResponse]:
        """Stream what changes from now on."""
        del context
        tenant = request.tenant or DEFAULT_TENANT
        seen = {(topics.KPIS, partition): end for partition, end in enumerate(await self._log.end(topics.KPIS))}
        while True:
            await self._log.wait_for([topics.KPIS], seen, 3600.0)
            for (topic, partition), offset in list(seen.items()):
                for record in await self._log.read(topic, partition, offset):
                    seen[topic, partition] = record.offset + 1
                    if record.value is not None and (record.key or b"").startswith(key_of(tenant, "")):
                        yield pb.WatchKpisResponse(kpi=events_pb2.KpiComputed.FromString(record.value))

    # Data out and in --------------------------------------------------------------------------------------------

    async def Export(self, request: pb.ExportRequest, context: Context) -> AsyncIterator[pb.ExportResponse]:
        """Write conversations to files, and tell how far it is."""
        del context
        target = self._target(request)
        async with contextlib.aclosing(self._exporter.export(target)) as steps:
            async for step, position in steps:
                if position is None:
                    yield pb.ExportResponse(turns=step.turns)
                else:
                    yield pb.ExportResponse(
                        turns=step.turns, files=map(str, step.files), position_token=encode_token(position)
                    )

    def _target(self, request: pb.ExportRequest) -> Target:
        if not request.folder:
            raise InvalidInputError("Export: name a folder to write to")
        if request.format not in _FORMATS:
            raise InvalidInputError(f"Export: there is no format {request.format}")
        folder, root = Path(request.folder).resolve(), self._settings.export_root
        if root is not None and not folder.is_relative_to(root):
            raise PermissionDeniedError(
                f"Export: {folder} is not in {root}, where exports may go (feedback.export_root)"
            )
        return Target(folder, request.tenant or DEFAULT_TENANT, _FORMATS[request.format])

    async def ImportTurns(
        self, requests: AsyncIterator[pb.ImportTurnsRequest], context: Context
    ) -> pb.ImportTurnsResponse:
        """Put the history of another system on the log."""
        del context
        response, number, tenant = pb.ImportTurnsResponse(), 0, None
        reached: Offsets = {}
        async for request in requests:
            tenant = (request.tenant or DEFAULT_TENANT) if tenant is None else tenant
            for begin in range(0, len(request.lines), APPEND_LINES):
                found: list[Imported] = []
                for line in request.lines[begin : begin + APPEND_LINES]:
                    number += 1
                    try:
                        if line.strip():
                            found.append(imported(tenant, line))
                    except InvalidInputError as error:
                        response.refused += 1
                        if len(response.refused_lines) < REFUSED_MAX:
                            response.refused_lines.add(number=number, reason=str(error))
                reached.update(await self._append(found, response))
        if reached:
            response.position_token = encode_token(position_of(reached))
        return response

    async def _append(self, found: list[Imported], response: pb.ImportTurnsResponse) -> Offsets:
        messages: list[Message] = [line.turn for line in found]
        messages.extend(line.rating for line in found if line.rating is not None)
        if not messages:
            return {}
        position = await self._log.append(messages)
        response.turns += len(found)
        response.ratings += len(messages) - len(found)
        return {(place.topic, place.partition): place.offset for place in position.offsets}


def rating_message(rating: events_pb2.AnswerRated, now_ms: int) -> Message:
    """Return the message for the topic `ratings`; the time is filled in where it is absent.

    Raises:
        InvalidInputError: it names nothing to rate, says nothing, is off the scale, too long, or of the future.
    """
    rated = events_pb2.AnswerRated()
    rated.CopyFrom(rating)
    if not rated.answer_id and not rated.conversation_id:
        raise InvalidInputError("Rate: name an answer_id, or a conversation_id to rate the conversation as a whole")
    key_of_event(rated)  # refuses names that cannot be part of a key
    for name in ("tenant", "answer_id", "conversation_id", "rater"):
        if len(getattr(rated, name)) > ID_MAX:
            raise InvalidInputError(f"Rate: {name} is longer than {ID_MAX} characters")
    if len(rated.text) > TEXT_MAX:
        raise InvalidInputError(f"Rate: the text is longer than {TEXT_MAX:,} characters")
    if rating_value(rated) is None and not rated.text:
        raise InvalidInputError(f"Rate: give up (true or false), a scale from 1 to {SCALE_MAX}, or a text")
    rated_ms = milliseconds(rated.rated_at, now_ms)
    if rated_ms > now_ms + FUTURE_MAX_MS:
        raise InvalidInputError(
            f"Rate: rated_at is in the future ({rated.rated_at.ToJsonString()}): leave it out for now"
        )
    rated.rated_at.FromMilliseconds(rated_ms)
    key = key_of(rated.tenant, rated.answer_id) if rated.answer_id else key_of(rated.tenant, "", rated.conversation_id)
    return message_of(topics.RATINGS, key, rated, rated_ms)
