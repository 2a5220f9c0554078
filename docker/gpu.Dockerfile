# syntax=docker/dockerfile:1
# docker build -f docker/gpu.Dockerfile -t gsdist:gpu .
# The first stage has nvcc, the second only what running needs; torch's wheels bring CUDA's libraries and NCCL.
ARG DEVEL=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG RUNTIME=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${DEVEL} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN docker/build_wheel.sh . /wheels

FROM ${RUNTIME} AS runtime
ARG COMMIT=unknown
ARG VERSION=0.1.0
ARG TORCH_INDEX=
LABEL org.opencontainers.image.title="gsdist" \
      org.opencontainers.image.description="Distributed PyTorch training behind slow networks, on NVIDIA GPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/gsdist/bin:$PATH
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/gsdist
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,source=docker,target=/scripts \
    /scripts/install_wheel.sh /wheels /requirements/lock.txt mpi,log,cuda \
    && useradd --create-home --uid 10001 gsdist
USER 10001
WORKDIR /home/gsdist
HEALTHCHECK --interval=5m --timeout=90s --start-period=30s CMD ["gsdist", "doctor"]
CMD ["gsdist", "doctor"]
