# The image of every pod. `make image` builds it; so does `docker build --target cpu .`
#
# Targets: `cpu` exchanges gradients by gloo, `gpu` by NCCL too. Whatever compiles or downloads stays
# in the builders. The image has Debian's Python and one folder, /opt/alexnet, with every package at
# the version and hash of requirements/, so that nothing is installed when it runs. Its root may be
# read-only: /tmp, /dev/shm and /runs are written to, /data by `alexnet prepare`.
#
# A release names the base by its digest: --build-arg BASE=debian:bookworm-slim@sha256:...
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS tools
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        binutils ca-certificates g++ make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# The image's environment, and a pip outside of it, which has none at the end.
RUN python3 -m venv /opt/alexnet && python3 -m venv /opt/pip
ENV PATH=/opt/alexnet/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src

FROM tools AS builder-cpu
# A certificate that the network between here and the package index needs, if any.
ARG PIP_CERT
COPY requirements requirements
RUN pip install --require-hashes -r requirements/cpu.lock
# Named, not taken from the machine that builds: the nodes may have another processor.
ARG HOROVOD_BUILD_ARCH_FLAGS="-mf16c -mavx -mfma"
COPY tools/horovod tools/horovod
RUN python tools/horovod/build.py --flavour cpu
COPY pyproject.toml tools/image/slim.py ./
RUN python slim.py pyproject.toml
COPY LICENSE README.md ./
COPY alexnet alexnet
COPY cluster cluster
COPY configs configs
COPY k8s/*.yaml k8s/
# Apart from the packages: a change of the code is then a small layer.
RUN /opt/pip/bin/pip --python /opt/alexnet/bin/python install --no-deps --no-build-isolation \
        --root /package .

FROM ${BASE} AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
    && useradd --uid 1000 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin \
        alexnet \
    && install -d -o alexnet -g alexnet /runs /data
COPY configs /app/configs
COPY tools/image/health.py /app/health.py
WORKDIR /app
USER 1000:1000
ENV PATH=/opt/alexnet/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
CMD ["alexnet", "--help"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "/app/health.py"]
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="alexnet" \
    org.opencontainers.image.description="AlexNet on many GPUs: Ray, Horovod, TensorFlow, Parquet" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS cpu
COPY --from=builder-cpu /opt/alexnet /opt/alexnet
COPY --from=builder-cpu /package /

FROM tools AS builder-gpu
ARG PIP_CERT
COPY requirements requirements
RUN pip install --require-hashes -r requirements/gpu.lock
# CUDA's compiler comes as wheels; CMake looks for it where a toolkit has it.
RUN pip install --require-hashes --no-deps --target /opt/cuda -r requirements/cuda.lock \
    && ln -s lib /opt/cuda/nvidia/cu13/lib64 \
    && ln -s libcudart.so.13 /opt/cuda/nvidia/cu13/lib/libcudart.so
ENV CUDA_HOME=/opt/cuda/nvidia/cu13
ARG HOROVOD_BUILD_ARCH_FLAGS="-mf16c -mavx -mfma"
COPY tools/horovod tools/horovod
RUN python tools/horovod/build.py --flavour gpu
COPY pyproject.toml tools/image/slim.py ./
RUN python slim.py pyproject.toml cuda
COPY LICENSE README.md ./
COPY alexnet alexnet
COPY cluster cluster
COPY configs configs
COPY k8s/*.yaml k8s/
RUN /opt/pip/bin/pip --python /opt/alexnet/bin/python install --no-deps --no-build-isolation \
        --root /package .

FROM runtime AS gpu
COPY --from=builder-gpu /opt/alexnet /opt/alexnet
COPY --from=builder-gpu /package /
