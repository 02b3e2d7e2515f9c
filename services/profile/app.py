"""Joins the profile service: settings, rules, stores and processors."""

from headwater.profile.v1 import service_pb2
from services.kernel import topics
from services.kernel.processor import Processor
from services.kernel.service import Platform, ReadModel, Service
from services.profile import decider, documents, erasure
from services.profile.grpc_api import ProfileApi
from services.profile.policy import Policy
from services.profile.ports import ERASURE_GROUP, FOLD_GROUP, ROWS_GROUP, ProfileStores
from services.profile.projection import Projection
from services.profile.settings import Settings
from services.profile.sqlite_store import SqliteStores

ROW_TOPICS = (topics.CHANGES, topics.ASSIGNMENTS)


def build(platform: Platform) -> Service:
    """Return the service on an installation's log and database."""
    settings = Settings.from_config(platform.settings.table("profile"))
    stores: ProfileStores = SqliteStores(platform, Projection(settings).fold)

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
                internal_topics=(topics.TOUCHED,),
            ),
            Processor(
                FOLD_GROUP,
                (topics.TOUCHED,),
                stores.documents,
                documents.decide,
                # While rows come in, the same profiles are touched over and over.
                may_wait=rows_come_in,
            ),
            Processor(ERASURE_GROUP, (topics.ERASURES,), stores.erasures, erasure.decide),
        ],
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
