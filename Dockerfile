# The server. Build: docker build -t nexus-grpc .    Run: see docker-compose.yml, or
#   docker run -p 127.0.0.1:8001:8001 -p 127.0.0.1:8080:8080 -v ./models:/models -v nexus-data:/data nexus-grpc
# For other machines: -p without 127.0.0.1, and -e NEXUS_AUTH=required; keys by `docker exec … nexus keys create NAME`.
# For uploads user 10001 must be able to write to ./models.
# One image for both shapes: with Envoy inside (the default), or beside it (NEXUS_ENVOY=external).

FROM python:3.11-slim-bookworm AS build
WORKDIR /app
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && python -m venv /app/.venv
# The pinned dependencies first: they change less often than the code.
COPY requirements.lock ./
RUN .venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY proto proto
COPY envoy envoy
COPY workers workers
COPY nexus_grpc nexus_grpc
# The hot path compiled: here that it cannot be is an error.
RUN .venv/bin/python proto/build.py \
 && NEXUS_COMPILE=1 .venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
# What models that change the case of text are loaded with.
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends locales \
 && localedef -i en_US -f UTF-8 en_US.UTF-8 \
 && rm -rf /var/lib/apt/lists/*
# A number, so that Kubernetes can check runAsNonRoot.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin nexus && mkdir -p /models /data && chown 10001 /models /data
COPY --from=build /app/.venv /app/.venv
WORKDIR /app
# In a container, who can reach the ports is decided where they are published; hence the last two. The very last lets
# callers do without a credential as long as NEXUS_AUTH is off, its default.
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NEXUS_MODEL_REPOSITORY=/models \
    NEXUS_DATA_DIR=/data \
    NEXUS_HOST=0.0.0.0 \
    NEXUS_INSECURE_ALLOW_ANONYMOUS=1
USER 10001
# The registry: what must outlive the container.
VOLUME /data
EXPOSE 8001 8080 8002
STOPSIGNAL SIGTERM
# By the gRPC health protocol: ready means that models are loaded and fronts serve.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["nexus", "health"]
# The supervisor is made to be process 1: it reaps its children and passes nothing else on.
CMD ["nexus", "serve"]
