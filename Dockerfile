# syntax=docker/dockerfile:1
FROM python:3.12-slim-bookworm AS build
# requirements-cluster.txt makes the image of deploy/compose.yaml, with Ray and Postgres.
ARG REQUIREMENTS=requirements.txt
WORKDIR /src
COPY requirements.txt requirements-cluster.txt ./
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r "$REQUIREMENTS"
COPY pyproject.toml setup.py README.md LICENSE ./
COPY audio_assets ./audio_assets
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
# /home/app/dagster is DAGSTER_HOME in deploy/compose.yaml: a volume there belongs to whom the directory belongs.
RUN useradd --create-home --uid 10001 app && install -d -o app -g app /data /home/app/dagster
COPY --from=build /opt/venv /opt/venv
COPY --chown=app:app workspace.yaml dagster.yaml /home/app/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AUDIO_ASSETS_HOME=/data \
    DAGSTER_HOME=/data/dagster \
    DAGSTER_DISABLE_TELEMETRY=1 \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001
WORKDIR /home/app
VOLUME /data
EXPOSE 3000
# Settings (R2_*, OPENAI_API_KEY …) come with `docker run --env-file .env`; none are in the image.
# Dagster's open-source UI has no login: publish the port on loopback only, -p 127.0.0.1:3000:3000.
CMD ["sh", "-c", "python -m audio_assets.dagster_home && exec dagster dev -h 0.0.0.0 -p 3000 -w workspace.yaml"]
