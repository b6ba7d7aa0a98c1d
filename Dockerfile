# Builds three images. The service is the last target and therefore the default.
#   docker build -t vaeserve .                                    serves, without torch or a compiler
#   docker build -t vaeserve-training --target training .         trains and publishes models
#   docker build -t vaeserve-gpu --target service-gpu .           serves with onnxruntime's CUDA build
# Any base image with Python 3.11 to 3.13, venv, pip and glibc (which the wheels need).
ARG BASE=python:3.12-slim


FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The environment that ships has no pip: the one in /build installs into it.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/vaeserve
COPY deploy/build.lock deploy/
RUN /build/bin/pip install --require-hashes --only-binary :all: -r deploy/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
COPY vaeserve vaeserve
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .
# COPY keeps the permissions of the checkout, which depend on its owner's umask.
COPY models /models
RUN chmod -R u=rwX,go=rX /models


FROM build AS build-service
COPY deploy/service.lock deploy/
# The libraries' own tests and onnxruntime's tools for making models would be a tenth of the image.
RUN /build/bin/pip --python /opt/vaeserve/bin/python install --require-hashes --only-binary :all: -r deploy/service.lock \
 && /build/bin/pip --python /opt/vaeserve/bin/python install --no-deps /dist/*.whl \
 && cd /opt/vaeserve/lib/python3*/site-packages \
 && find . -type d -name tests -prune -exec rm -r {} + \
 && rm -r onnxruntime/quantization onnxruntime/tools onnxruntime/transformers


FROM build AS build-service-gpu
COPY deploy/service-gpu.lock deploy/
RUN /build/bin/pip --python /opt/vaeserve/bin/python install --require-hashes --only-binary :all: -r deploy/service-gpu.lock \
 && /build/bin/pip --python /opt/vaeserve/bin/python install --no-deps /dist/*.whl


FROM ${BASE} AS training
# Empty: the default index, whose torch for Linux includes CUDA (gigabytes).
# https://download.pytorch.org/whl/cpu has the CPU build.
ARG TORCH_INDEX=
COPY --from=build /dist /dist
# World-writable, so that `--user` can be the owner of the models on the host.
RUN mkdir -m 1777 /work /work/models /work/runs /data \
 && useradd --no-log-init --uid 10001 --no-create-home --home-dir /tmp vae \
 && python3 -m venv /opt/vaeserve \
 && /opt/vaeserve/bin/pip install --no-cache-dir --disable-pip-version-check \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} "$(ls /dist/*.whl)[train]"
# Libraries need a cache folder (HOME) and a user name (USER), which a user given by `--user` lacks.
ENV PATH=/opt/vaeserve/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp USER=vae VAESERVE_DATA=/data
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["vae-train"]
CMD ["fit"]


FROM ${BASE} AS service-base
RUN useradd --no-log-init --uid 10001 --no-create-home --home-dir /tmp vae
ENV PATH=/opt/vaeserve/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    VAESERVE_HOST=0.0.0.0 VAESERVE_MODELS=/models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python3", "-I", "-S", "-c", "\
import http.client, os; \
c = http.client.HTTPConnection('localhost', int(os.environ.get('VAESERVE_PORT') or 8000), timeout=2); \
c.request('GET', '/readyz'); \
raise SystemExit(c.getresponse().status != 200)"]
# The exec form delivers SIGTERM to vae-serve, which finishes the requests in flight and exits with 0.
ENTRYPOINT ["vae-serve"]


FROM service-base AS service-gpu
COPY --from=build-service-gpu /opt/vaeserve /opt/vaeserve
# CUDA and cuDNN are installed as wheels; this tells the loader where they are.
RUN ls -d /opt/vaeserve/lib/python3*/site-packages/nvidia/*/lib > /etc/ld.so.conf.d/vaeserve.conf && ldconfig
COPY --from=build /models /models
USER 10001:10001


FROM service-base AS service
COPY --from=build-service /opt/vaeserve /opt/vaeserve
COPY --from=build /models /models
USER 10001:10001
