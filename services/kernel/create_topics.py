"""Makes the topics of a cluster, for whoever prepares one: `python -m services.kernel.create_topics`.

Topics that are there stay as they are. Exit status 0 when all are there.
"""

import asyncio

from services.kernel import telemetry
from services.kernel.errors import HeadwaterError, InvalidInputError
from services.kernel.kafka_log import KafkaLog
from services.kernel.kafka_settings import KafkaSettings
from services.kernel.settings import Settings, load
from services.kernel.topics import TOPICS


async def create(settings: Settings) -> int:
    """Make the topics; return how many there are.

    Raises:
        InvalidInputError: no Kafka is configured, or it refuses a topic.
        UnavailableError: it does not answer.
    """
    table = settings.table("kafka")
    if not table:
        raise InvalidInputError("[kafka] is not configured: set HEADWATER__KAFKA__BOOTSTRAP_SERVERS")
    log = KafkaLog(KafkaSettings.from_config(table), partitions=settings.partitions)
    try:
        await log.start()
        await log.create_topics(TOPICS)
        return len(log.topics())
    finally:
        await log.close()


def main() -> None:
    """Make the topics that the settings lead to."""
    try:
        settings = load()
        telemetry.configure_logging(settings.log_level, as_json=settings.log_json)
        print(f"{asyncio.run(create(settings))} topics are there")  # noqa: T201 - the answer
    except HeadwaterError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
