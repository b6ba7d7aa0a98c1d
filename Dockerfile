# Two images from one file: `service` (the default; no torch, no compiler) and `training`.
#   docker build -t vaeserve .
#   docker build --target training -t vaeserve-training .

ARG BASE=python:3.12-slim

FROM ${BASE} AS wheels
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
COPY client client
RUN python3 -m venv /opt/vaeserve \
 && /opt/vaeserve/bin/python -m pip install --no-cache-dir --disable-pip-version-check .

FROM ${BASE} AS training
# Empty: the default index. https://download.pytorch.org/whl/cpu for instance leaves CUDA out.
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
COPY client client
RUN python3 -m venv /opt/vaeserve \
 && /opt/vaeserve/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
    ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} '.[train]'
ENV PATH=/opt/vaeserve/bin:$PATH VAESERVE_DATA=/data
RUN useradd --uid 10001 --create-home vae && mkdir -p /work /data && chown vae /work /data
USER 10001
WORKDIR /work
ENTRYPOINT ["vae-train"]
CMD ["fit", "--models", "/models"]

FROM ${BASE} AS service
COPY --from=wheels /opt/vaeserve /opt/vaeserve
COPY models /models
ENV PATH=/opt/vaeserve/bin:$PATH PYTHONUNBUFFERED=1 VAESERVE_HOST=0.0.0.0 VAESERVE_MODELS=/models
RUN useradd --uid 10001 vae
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
# Exec form: SIGTERM reaches vae-serve itself.
ENTRYPOINT ["vae-serve"]
