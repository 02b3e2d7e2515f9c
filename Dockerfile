# Headwater, or one service of it: `docker build -t headwater .` is the whole process of `headwater up`, and with
# `--build-arg SERVICE=profile` the image runs that service alone, for a cluster. There is no published image; docs/deploy.md
# says how they run. BASE is anything with Python 3.11 or newer as `python`; both stages use it, so that the environment fits.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# ingest, identity-graph, profile, embedder, rag-gateway or feedback; empty is every service in one process.
ARG SERVICE=
# The extras of pyproject.toml, with commas; empty takes what the service needs, and in a cluster the clients of its engines.
ARG EXTRAS=
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY protos protos
COPY demo demo
COPY services services
RUN case "$SERVICE" in \
      '') extras=all run='headwater up' ;; \
      ingest) extras=ingest,avro,s3,cluster run='python -m services.ingest' ;; \
      identity-graph|profile|embedder|rag-gateway|feedback) \
        extras=$SERVICE,cluster run="python -m services.$(echo "$SERVICE" | tr - _)" ;; \
      *) echo "there is no service $SERVICE" >&2; exit 2 ;; \
    esac && \
    python -m venv --without-pip /opt/headwater && \
    python -m pip --python /opt/headwater/bin/python install --no-cache-dir --disable-pip-version-check \
      --constraint constraints.txt ".[${EXTRAS:-$extras}]" && \
    printf '#!/bin/sh\nexec %s\n' "$run" >/opt/headwater/bin/serve && chmod 755 /opt/headwater/bin/serve
# The model is built here, once: a container cannot write to its cache, and starts at once. Whoever builds a model is the
# only one who may read it, and that is another user here.
RUN mkdir /opt/headwater/cache && \
    case "$SERVICE" in ''|embedder) \
      cd / && HEADWATER_CACHE=/opt/headwater/cache /opt/headwater/bin/python -m services.embedder.model build ;; esac && \
    chmod -R a+rX /opt/headwater/cache

FROM ${BASE}
LABEL org.opencontainers.image.title="headwater" org.opencontainers.image.licenses="Apache-2.0"
# A number, because Kubernetes cannot tell from a name that it is not root.
RUN groupadd --gid 10001 headwater && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin headwater && \
    install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=build /opt/headwater /opt/headwater
# Within the container every address is served: what reaches it is decided by what is published. ONNX Runtime would send
# its maker what it runs.
ENV PATH=/opt/headwater/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HEADWATER_CACHE=/opt/headwater/cache \
    HEADWATER_DATA=/data \
    HEADWATER_GRPC_ADDRESS=0.0.0.0:7070 \
    HEADWATER_HTTP_ADDRESS=0.0.0.0:8080 \
    HEADWATER_LOG_JSON=true
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 7070 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["python", "-m", "services.kernel.health"]
CMD ["serve"]
