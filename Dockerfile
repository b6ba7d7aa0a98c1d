# Three images from one file; the service's is the last and so the default.
#   docker build -t vaeserve .                                    serves: no torch, no compiler
#   docker build -t vaeserve-training --target training .         trains and publishes models
#   docker build -t vaeserve-gpu --target service-gpu .           serves with onnxruntime's CUDA build
# Any base with Python 3.11 or newer, venv and pip will do; glibc, since that is what the wheels are made for.
ARG BASE=python:3.12-slim


FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The environment that ships gets no pip of its own: the one of /build installs into it.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/vaeserve
COPY deploy/build.lock deploy/
RUN /build/bin/pip install --require-hashes --only-binary :all: -r deploy/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
COPY vaeserve vaeserve
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .
# Folders keep the permissions of the checkout, and whose umask that was is not known here.
COPY models /models
RUN chmod -R u=rwX,go=rX /models


FROM build AS build-service
COPY deploy/service.lock deploy/
# The tests that libraries bring along, and onnxruntime's tools for making models, are a tenth of the image.
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
# Empty: the default index, whose torch for Linux brings CUDA along (gigabytes).
# https://download.pytorch.org/whl/cpu has one without.
ARG TORCH_INDEX=
COPY --from=build /dist /dist
# Any user may write to these, so that `--user` can be whoever owns the models outside.
RUN mkdir -m 1777 /work /work/models /work/runs /data \
 && useradd --no-log-init --uid 10001 --no-create-home --home-dir /tmp vae \
 && python3 -m venv /opt/vaeserve \
 && /opt/vaeserve/bin/pip install --no-cache-dir --disable-pip-version-check \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} "$(ls /dist/*.whl)[train]"
# HOME and USER: libraries look for a cache folder and for a name, which a user from outside does not have.
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
# Exec form: SIGTERM reaches vae-serve itself, which then finishes what it has begun and exits with 0.
ENTRYPOINT ["vae-serve"]


FROM service-base AS service-gpu
COPY --from=build-service-gpu /opt/vaeserve /opt/vaeserve
# CUDA and cuDNN come as wheels; the loader has to know where they are.
RUN ls -d /opt/vaeserve/lib/python3*/site-packages/nvidia/*/lib > /etc/ld.so.conf.d/vaeserve.conf && ldconfig
COPY --from=build /models /models
USER 10001:10001


FROM service-base AS service
COPY --from=build-service /opt/vaeserve /opt/vaeserve
COPY --from=build /models /models
USER 10001:10001
