"""The check that the KPIs agree with the log: computed again from the events alone, the plain way, they are the same.

It shares the definitions of what is measured with the service, and none of its state: no row, no window, no offset but
the position up to which the service has read.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

from headwater.common.v1 import events_pb2 as common_pb2
from headwater.feedback.v1 import events_pb2
from headwater.rag_gateway.v1 import events_pb2 as gateway_pb2
from services.feedback.answers import (
    Answer,
    Key,
    classified_of,
    conversation_key,
    event_of,
    key_of_event,
    milliseconds,
    names_of_erasure,
    names_of_rater,
    names_of_turn,
    rating_of,
    turn_of,
)
from services.feedback.kpis import Computed, compute, observation_of
from services.feedback.projection import name_of
from services.feedback.settings import Settings
from services.kernel import topics
from services.kernel.errors import InvalidInputError
from services.kernel.log import Log, Offsets, Record
from services.kernel.window_table import CellKey, WindowTable

INPUTS = (topics.CONVERSATIONS, topics.RATINGS, topics.CLASSIFIED, topics.ERASURES)
KpiTable = dict[tuple[CellKey, str], Computed]


class Recomputation:
    """Everything that was ever said of answers, and the KPIs that follow from it. The order does not matter."""

    def __init__(self, settings: Settings, erased_turns: Iterable[tuple[str, int, int, int]] = ()) -> None:
        """Begin with nothing but tenant, partition, offset and time of turns that the log may not hold any more."""
        self._settings = settings
        self._gone: dict[tuple[str, int], deque[tuple[int, int]]] = defaultdict(deque)
        for tenant, partition, offset, asked_ms in erased_turns:
            self._gone[tenant, partition].append((offset, asked_ms))
        self._known: dict[Key, Answer] = {}
        self._askers: dict[tuple[Key, Key, str], int] = {}  # answer, who asked, conversation: when first
        self._erased: dict[Key, int] = {}
        self._newest_ms: dict[tuple[str, int], int] = {}

    def take(self, record: Record) -> None:
        """Take a record of one of INPUTS into account; of one partition they must come in order."""
        try:
            event = event_of(record)
            if isinstance(event, common_pb2.ErasureRequested):
                until_ms = milliseconds(event.requested_at, record.timestamp_ms)
                for name in names_of_erasure(event):
                    self._erased[name] = max(until_ms, self._erased.get(name, -1))
            elif event is not None:
                self._take(event, record)
        except InvalidInputError:
            return  # a dead letter: it is counted there, and in no KPI

    def _take(
        self, event: gateway_pb2.TurnCompleted | events_pb2.AnswerRated | events_pb2.TurnClassified, record: Record
    ) -> None:
        key = key_of_event(event)
        answer = self._known.setdefault(key, Answer(is_conversation=key.subject.startswith("conversation:")))
        match event:
            case gateway_pb2.TurnCompleted():
                turn, place = turn_of(event, record), (key.tenant, record.partition)
                newest_ms = self._advance(place, record.offset, turn.asked_ms)
                for name in names_of_turn(key.tenant, turn.profile_id, turn.asked_as):
                    asked = (key, name, turn.conversation_id)
                    self._askers[asked] = min(turn.asked_ms, self._askers.get(asked, turn.asked_ms))
                if answer.turn is None or (turn.asked_ms, turn.digest) > (answer.turn.asked_ms, answer.turn.digest):
                    late = self._settings.event_time.is_too_late(turn.asked_ms, newest_ms)
                    answer.turn = turn._replace(too_late=late)
            case events_pb2.AnswerRated():
                rating, known = rating_of(event, record), answer.ratings.get(event.rater)
                if known is None or (rating.rated_ms, rating.digest) > (known.rated_ms, known.digest):
                    answer.ratings[event.rater] = rating
            case events_pb2.TurnClassified():
                classified = classified_of(event, record)
                if answer.classified is None or classified.order > answer.classified.order:
                    answer.classified = classified

    def _advance(self, place: tuple[str, int], offset: int, asked_ms: int) -> int | None:
        """Let a turn's partition move on; return the newest turn before it."""
        while self._gone[place] and self._gone[place][0][0] < offset:
            gone_ms = self._gone[place].popleft()[1]
            self._newest_ms[place] = max(gone_ms, self._newest_ms.get(place, gone_ms))
        newest_ms = self._newest_ms.get(place)
        self._newest_ms[place] = asked_ms if newest_ms is None else max(newest_ms, asked_ms)
        return newest_ms

    def kpis(self) -> KpiTable:
        """Return the KPIs of every window that is not empty."""
        table = WindowTable(self._settings.windows, self._settings.with_spread)
        for key, answer in self._without_the_erased().items():
            table.put(name_of(key), observation_of(key.tenant, answer, self._settings.dimensions))
        return {
            (change.key, kpi.name): computed
            for change in table.settle()
            for kpi in self._settings.kpis
            if (computed := compute(kpi, change.cell.measures.get(kpi.measure))).size
        }

    def _without_the_erased(self) -> Mapping[Key, Answer]:
        gone: set[Key] = set()
        for (key, name, conversation_id), asked_ms in self._askers.items():
            if asked_ms <= self._erased.get(name, -1):
                gone.update((key, conversation_key(key.tenant, conversation_id)))
        return {key: self._without_erased_raters(key, a) for key, a in self._known.items() if key not in gone}

    def _without_erased_raters(self, key: Key, answer: Answer) -> Answer:
        ratings = {
            rater: rating
            for rater, rating in answer.ratings.items()
            if not any(rating.rated_ms <= self._erased.get(name, -1) for name in names_of_rater(key.tenant, rater))
        }
        return Answer(answer.is_conversation, answer.turn, ratings, answer.classified)


async def recomputed(
    log: Log, positions: Offsets, settings: Settings, erased_turns: Iterable[tuple[str, int, int, int]]
) -> KpiTable:
    """Return the KPIs that follow from the log up to these positions."""
    recomputation = Recomputation(settings, erased_turns)
    for topic in INPUTS:
        for partition in range(log.partitions(topic)):
            offset, end = 0, positions.get((topic, partition), 0)
            while offset < end and (records := await log.read(topic, partition, offset)):
                for record in records:
                    if record.offset < end:
                        recomputation.take(record)
                offset = records[-1].offset + 1
                await asyncio.sleep(0)  # queries have their turn
    return await asyncio.to_thread(recomputation.kpis)


def differences(table: KpiTable, expected: KpiTable) -> list[str]:
    """Name the KPIs in which two tables differ."""
    return [
        f"{kpi} {key.spec} {key.start_ms} {key.group!r}: {table.get((key, kpi))} in the table, "
        f"{expected.get((key, kpi))} from the log"
        for key, kpi in sorted(table.keys() | expected.keys())
        if table.get((key, kpi)) != expected.get((key, kpi))
    ]
