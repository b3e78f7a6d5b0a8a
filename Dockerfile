# Targets: cpu (the last one, so the default), cuda, and their bills of materials, sbom and sbom-cuda.
#   docker build --target cpu -t tiercel:cpu .
# BASE is any Debian or Ubuntu with Python 3.11 or later; deploy/container/README.md tells more.
ARG BASE=python:3.11-slim-bookworm

# ---- what build and run time share --------------------------------------------------------------
# hadolint ignore=DL3006
FROM ${BASE} AS base
ENV LANG=C.UTF-8 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Not pinned: a rebuild is to bring the distribution's security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/*

# ---- the environment with everything in it ------------------------------------------------------
FROM base AS build
# torch goes first and by itself: it is large and seldom changes. TORCH_INDEX_URL is the index of
# the build that is wanted, for example torch's own index of CPU builds; without it, pip's default
# may bring gigabytes of CUDA packages. pip reads the PIP_ arguments itself: an index, constraints,
# or a folder of wheels that is mounted while the image is built.
ARG TORCH="torch==2.13.0"
ARG TORCH_INDEX_URL=""
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CONSTRAINT
ARG PIP_CERT
WORKDIR /src
RUN python3 -m venv /opt/tiercel \
 && /opt/tiercel/bin/pip install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "${TORCH}"
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY server server
COPY kernels kernels
RUN /opt/tiercel/bin/pip install .

FROM build AS build-cuda
# Triton compiles its launchers with a C compiler when a kernel is first used.
RUN /opt/tiercel/bin/pip install ".[cuda]"

# ---- what writes bills of materials; in no image ------------------------------------------------
FROM base AS scribe
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CONSTRAINT
ARG PIP_CERT
# hadolint ignore=DL3042
RUN python3 -m venv /opt/bill && /opt/bill/bin/pip install "cyclonedx-bom==7.5.0"

# ---- run time -----------------------------------------------------------------------------------
FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="tiercel" \
      org.opencontainers.image.description="HTTP inference server for the Falcon language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# Any user of group 0 may write to /data, and nothing else is written but /tmp: the root file system
# can be read-only. A user without a name (OpenShift) needs HOME and USER from here.
RUN mkdir -p /data && chgrp 0 /data && chmod 2775 /data
ENV PATH=/opt/tiercel/bin:$PATH \
    PORT=8080 \
    HOME=/tmp USER=tiercel \
    HF_HOME=/data HUGGINGFACE_HUB_CACHE=/data \
    XDG_CACHE_HOME=/tmp/.cache TRITON_CACHE_DIR=/data/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:0
VOLUME ["/data"]
EXPOSE 8080
STOPSIGNAL SIGTERM
# TGI's name and flags, so that arguments and variables of its images keep working; it listens on
# all addresses. A lone `serve`, as SageMaker appends it, is understood.
ENTRYPOINT ["/usr/bin/tini", "--", "text-generation-launcher"]
# A large model takes its time to load; failures only count after the start period.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30m --retries=3 \
  CMD ["tiercel", "healthcheck"]

FROM runtime AS cuda
USER 0
# Triton's launchers are compiled at run time, which takes a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && (test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
     || apt-get install -y --no-install-recommends python3-dev) \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /opt/tiercel /opt/tiercel
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:0

FROM runtime AS plain
# No compiler: on a CPU nothing is compiled at run time.
COPY --from=build /opt/tiercel /opt/tiercel

# ---- bills of materials, of the very images: docker build --target sbom --output sbom . ---------
FROM plain AS bill
USER 0
COPY --from=scribe /opt/bill /opt/bill
WORKDIR /sbom
RUN /opt/bill/bin/cyclonedx-py environment --output-file python.cdx.json /opt/tiercel/bin/python \
 && dpkg-query --show --showformat='${Package} ${Version} ${Architecture}\n' > debian.txt
USER 10001:0

FROM scratch AS sbom
COPY --from=bill /sbom /

FROM cuda AS bill-cuda
USER 0
COPY --from=scribe /opt/bill /opt/bill
WORKDIR /sbom
RUN /opt/bill/bin/cyclonedx-py environment --output-file python.cdx.json /opt/tiercel/bin/python \
 && dpkg-query --show --showformat='${Package} ${Version} ${Architecture}\n' > debian.txt
USER 10001:0

FROM scratch AS sbom-cuda
COPY --from=bill-cuda /sbom /

# ---- the default --------------------------------------------------------------------------------
FROM plain AS cpu
