# The image that `mot launch` runs on GKE, TPU VMs and by SkyPilot:
#   docker build --tag REGISTRY/mot:1 .                           for TPUs
#   docker build --build-arg EXTRAS=cuda,gcs --tag REGISTRY/mot:1 .    for GPUs
FROM python:3.12-slim
ARG EXTRAS=tpu,gcs
ENV PYTHONUNBUFFERED=1
WORKDIR /work
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY mot /src/mot
COPY configs /src/configs
COPY launch /src/launch
COPY scaling /src/scaling
RUN pip install --no-cache-dir --disable-pip-version-check -c /src/constraints.txt "/src[$EXTRAS]"
CMD ["mot", "--help"]
