"""Joins the profile service: settings, rules, stores and processors."""

from headwater.profile.v1 import service_pb2
from services.kernel import topics
from services.kernel.processor import Processor
from services.kernel.service import Platform, ReadModel, Service
from services.profile import decider, documents, erasure
from services.profile.grpc_api import ProfileApi
from services.profile.policy import Policy
from services.profile.ports import ERASURE_GROUP, FOLD_GROUP, ROWS_GROUP, Fold, ProfileStores
from services.profile.projection import Projection
from services.profile.settings import Settings

ROW_TOPICS = (topics.CHANGES, topics.ASSIGNMENTS)


def build(platform: Platform) -> Service:
    """Return the service; its stores are in MongoDB where that is configured, else in the local database."""
    settings = Settings.from_config(platform.settings.table("profile"))
    stores = _stores(platform, Projection(settings).fold)

    async def rows_come_in() -> bool:
        return await platform.log.lag(ROWS_GROUP, ROW_TOPICS) > 0

    api = ProfileApi(stores, Policy(settings), platform.log, platform.peers)
    return Service(
        name=erasure.SERVICE,
        register=api.register,
        service_names=[service_pb2.DESCRIPTOR.services_by_name["ProfileService"].full_name],
        processors=[
            Processor(
                ROWS_GROUP,
                ROW_TOPICS,
                stores.rows,
                decider.decide,
                decider.finish,
                ledger=stores.ledger,
                internal_topics=(topics.TOUCHED,),
            ),
            Processor(
                FOLD_GROUP,
                (topics.TOUCHED,),
                stores.documents,
                documents.decide,
                # While rows come in, the same profiles are touched over and over.
                may_wait=rows_come_in,
                ledger=stores.ledger,
            ),
            Processor(ERASURE_GROUP, (topics.ERASURES,), stores.erasures, erasure.decide, ledger=stores.ledger),
        ],
        start=stores.start,
        stop=stores.stop,
        stores=[
            ReadModel(
                name=erasure.SERVICE,
                groups=(ROWS_GROUP, FOLD_GROUP),
                reset=stores.reset,
                hash=stores.state_hash,
                internal_topics=(topics.TOUCHED,),
                seed_topic=topics.PROFILES,
                seed=stores.seed,
                reload=stores.reload,
            )
        ],
    )


def _stores(platform: Platform, fold: Fold) -> ProfileStores:
    if platform.settings.table("mongodb"):
        from services.profile.mongo_store import MongoStores

        return MongoStores(platform, fold)
    from services.profile.sqlite_store import SqliteStores

    return SqliteStores(platform, fold)
