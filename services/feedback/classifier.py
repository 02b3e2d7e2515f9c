"""The background work of classification: texts become `feedback.classified`, and ratings become a better model.

While the answers are taken in again from the log, nothing is classified: what was, is in the log and comes in, too.
"""

import asyncio
from collections.abc import Sequence
from itertools import islice

import structlog

from headwater.feedback.v1 import events_pb2
from services.feedback import learning, sentiment
from services.feedback.learning import Model
from services.feedback.ports import Text
from services.feedback.sentiment import Verdict, classify
from services.feedback.sqlite_jobs import SqliteJobs, examples
from services.kernel import topics
from services.kernel.enrichment import Runner
from services.kernel.jobs import Job, RetryPolicy
from services.kernel.log import Message, key_of, message_of
from services.kernel.service import Platform
from services.kernel.sqlite import Database

BATCH = 64
EXAMPLES_MAX = 5_000
GROWTH = 1.25  # a model is trained anew when there are so many times the examples
PAUSE_S = 30.0  # between two looks at whether there are
QUIET_CHECK_S = 0.02
REPLAY_CHECK_S = 0.2

SCHEMA = (
    """CREATE TABLE feedback_models (
         tenant TEXT PRIMARY KEY, ratings INTEGER NOT NULL, model BLOB) WITHOUT ROWID""",
)
_SENTIMENTS = (
    (sentiment.NEUTRAL_MAX, events_pb2.SENTIMENT_POSITIVE),
    (-sentiment.NEUTRAL_MAX, events_pb2.SENTIMENT_NEUTRAL),
    (-2.0, events_pb2.SENTIMENT_NEGATIVE),
)

log = structlog.get_logger(__name__)


class Models:
    """What was learnt, by tenant; it is made again from the ratings when it is lost."""

    def __init__(self, database: Database) -> None:
        """Make the table."""
        self._database = database
        self._loaded: dict[str, Model | None] = {}
        database.migrate("feedback.models", SCHEMA)

    def model(self, tenant: str) -> Model | None:
        """Return a tenant's model; None while there is none that is good enough."""
        if tenant not in self._loaded:
            row = self._database.reader.execute(
                "SELECT model FROM feedback_models WHERE tenant=? AND model IS NOT NULL", (tenant,)
            ).fetchone()
            self._loaded[tenant] = Model.restored(row[0]) if row else None
        return self._loaded[tenant]

    async def forget(self, tenant: str) -> None:
        """Drop a tenant's model: somebody from whom it was learnt is to be erased."""
        async with self._database.transaction() as unit:
            unit.execute("DELETE FROM feedback_models WHERE tenant=?", (tenant,))
        self._loaded.pop(tenant, None)

    async def outgrown(self) -> list[str]:
        """Return the tenants that have many more ratings than when their model was tried last."""
        return await asyncio.to_thread(self._outgrown)

    def _outgrown(self) -> list[str]:
        with self._database.snapshot() as connection:  # it looks at every rating, so not on the event loop
            rows = connection.execute(
                """SELECT r.tenant, count(*), coalesce(m.ratings, 0) FROM feedback_ratings AS r
                   LEFT JOIN feedback_models AS m USING (tenant) WHERE r.value IS NOT NULL GROUP BY r.tenant"""
            ).fetchall()
        return [tenant for tenant, now, before in rows if now >= max(learning.EXAMPLES_MIN, before * GROWTH)]

    async def learn(self, tenant: str) -> Model | None:
        """Train a tenant's model, and use it if it is good enough; returns it then."""
        ratings, model = await asyncio.to_thread(self._train, tenant)
        async with self._database.transaction() as unit:
            unit.execute(
                "INSERT OR REPLACE INTO feedback_models VALUES (?, ?, ?)", (tenant, ratings, model and model.state())
            )
        self._loaded[tenant] = model
        log.info("feedback.learnt", tenant=tenant, ratings=ratings, auc=model and round(model.auc, 3))
        return model

    def _train(self, tenant: str) -> tuple[int, Model | None]:
        with self._database.snapshot() as connection:
            ratings = connection.execute(
                "SELECT count(*) FROM feedback_ratings WHERE tenant=? AND value IS NOT NULL", (tenant,)
            ).fetchone()[0]
            found = list(examples(connection, tenant, EXAMPLES_MAX))
        return ratings, learning.train(found, sentiment.tone)

    async def learn_forever(self) -> None:
        """Look from time to time whether there is more to learn from; a background task."""
        while True:
            for tenant in await self.outgrown():
                await self.learn(tenant)
            await asyncio.sleep(PAUSE_S)


class Classifier:
    """Does the jobs of classification."""

    def __init__(self, platform: Platform, jobs: SqliteJobs, models: Models, answers_group: str) -> None:
        """Wire it; `run` does the work. `answers_group` is the consumer group that takes in what was said."""
        self._log, self._database, self._clock = platform.log, platform.database, platform.clock
        self._jobs, self._models, self._answers_group = jobs, models, answers_group
        policy = RetryPolicy(slots=1, batch_size=BATCH)
        self._runner = Runner(jobs, self._work, policy, clock=platform.clock)
        jobs.on_new = self._runner.wake

    async def run(self) -> None:
        """Work until cancelled; a background task."""
        await self._runner.run()

    async def settled(self) -> None:
        """Wait until no job is due and none runs; while the answers are taken in again, they all wait."""
        while self._is_busy() and not self._is_replay():  # noqa: ASYNC110 - time passes
            await asyncio.sleep(QUIET_CHECK_S)

    def _is_busy(self) -> bool:
        return bool(self._runner.scheduler.running) or not self._jobs.is_quiet(self._clock())

    def _is_replay(self) -> bool:
        return self._log.is_muted(self._answers_group)

    async def _work(self, jobs: Sequence[Job]) -> None:
        while self._is_replay():  # noqa: ASYNC110 - the log tells nobody of its end
            await asyncio.sleep(REPLAY_CHECK_S)
        texts = {(*text.key, text.words): text for text in self._jobs.texts(jobs)}
        models = {text.key.tenant: self._models.model(text.key.tenant) for text in texts.values()}
        # In slices, so that nobody waits for the interpreter while a long batch is judged.
        verdicts: dict[tuple[str, ...], Verdict] = {}
        waiting = iter(texts.items())
        while part := list(islice(waiting, 16)):
            verdicts.update(await asyncio.to_thread(_classified, part, models))
        now_ms = int(self._clock() * 1000)
        async with self._database.transaction() as unit:
            for job in jobs:
                if self._jobs.done(unit, job) and (text := texts.get(job.key)) is not None:  # type: ignore[call-overload]
                    unit.emit([_message(text, verdicts[*text.key, text.words], now_ms)])


def _classified(
    texts: Sequence[tuple[tuple[str, ...], Text]], models: dict[str, Model | None]
) -> dict[tuple[str, ...], Verdict]:
    return {place: classify(text, models[text.key.tenant]) for place, text in texts}


def _message(text: Text, verdict: Verdict, now_ms: int) -> Message:
    kind, _, name = text.key.subject.partition(":")
    event = events_pb2.TurnClassified(
        tenant=text.key.tenant,
        answer_id=name if kind == "answer" else "",
        conversation_id=text.conversation_id or (name if kind == "conversation" else ""),
        sentiment=next(label for least, label in _SENTIMENTS if verdict.score >= least),
        score=verdict.score,
        category=verdict.category,
        classifier=verdict.classifier,
        words=events_pb2.WORDS_RATING if text.is_rating else events_pb2.WORDS_QUESTION,
    )
    event.occurred_at.FromMilliseconds(text.occurred_ms)
    event.written_at.FromMilliseconds(text.written_ms)
    event.classified_at.FromMilliseconds(now_ms)
    key = key_of(text.key.tenant, event.answer_id) if event.answer_id else key_of(text.key.tenant, "", name)
    return message_of(topics.CLASSIFIED, key, event, text.occurred_ms)
