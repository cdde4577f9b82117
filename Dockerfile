# One image for every part; docker-compose.yml says which part a container runs.
FROM python:3.11.12-slim-bookworm AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/headroom
ENV PATH=/opt/headroom/bin:$PATH
WORKDIR /src

# The packages change seldom and the code often: this order keeps their layer.
COPY requirements.lock ./
RUN pip install --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11.12-slim-bookworm

RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/headroom headroom
COPY --from=build /opt/headroom /opt/headroom
ENV PATH=/opt/headroom/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEADROOM_DATA_DIR=/var/lib/headroom \
    HEADROOM_LOG_FORMAT=json
WORKDIR /var/lib/headroom
USER headroom
EXPOSE 8000
ENTRYPOINT ["headroom"]
CMD ["api"]
