# One image for batch, scheduler, serving and console; docker-compose.yml chooses the command.
FROM python:3.11.15-slim-bookworm

# The root file system is read-only later: what the scorer compiles on its first night is kept beside the models.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/app/models/compiled

# LightGBM needs OpenMP, which the slim image lacks.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# docker-compose.dask.yml asks for those of a Dask cluster as well.
ARG REQUIREMENTS=requirements.txt
COPY requirements.txt ./
COPY requirements-dask.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --requirement "$REQUIREMENTS"

COPY contract/ contract/
COPY batch/ batch/
COPY serving/ serving/
COPY scheduler/ scheduler/
COPY console/ console/

# Compiled now, as the root file system is read-only later. The folders of the models
# and stores are made here so that new volumes over them belong to the user.
RUN python -m compileall -q contract batch serving scheduler console \
    && groupadd --system --gid 10001 overnight \
    && useradd --system --uid 10001 --gid overnight --no-create-home --shell /usr/sbin/nologin overnight \
    && install --directory --owner overnight --group overnight models stores

USER 10001:10001

CMD ["python", "-m", "batch", "--help"]
