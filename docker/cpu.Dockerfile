# syntax=docker/dockerfile:1
# docker build -f docker/cpu.Dockerfile -t gsdist:cpu .
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN docker/build_wheel.sh . /wheels

FROM ${BASE} AS runtime
ARG COMMIT=unknown
ARG VERSION=0.1.0
# where CPU-only wheels of torch are, if PyPI's are too large
ARG TORCH_INDEX=
LABEL org.opencontainers.image.title="gsdist" \
      org.opencontainers.image.description="Distributed PyTorch training behind slow networks, on CPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,source=docker,target=/scripts \
    /scripts/install_wheel.sh /wheels /requirements/lock.txt mpi,log \
    && useradd --create-home --uid 10001 gsdist
USER 10001
WORKDIR /home/gsdist
HEALTHCHECK --interval=5m --timeout=90s --start-period=30s CMD ["gsdist", "doctor"]
CMD ["gsdist", "doctor"]

# For the demo over a shaped network only: `tc` needs root and NET_ADMIN.
FROM runtime AS lab
# hadolint ignore=DL3002
USER root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends iproute2 \
    && rm -rf /var/lib/apt/lists/*

FROM runtime
