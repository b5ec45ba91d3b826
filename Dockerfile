# Debian's name stands in the tag, so that a rebuild cannot change it. GitHub's workflow builds by the digest that the tag
# has there, and reports it; name one yourself to be sure of the same bytes: --build-arg PYTHON=python:3.12-…@sha256:…
ARG PYTHON=python:3.12-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
RUN python -m venv /venv
# Dependencies change seldom: a layer of their own. Every file is checked against its hash.
COPY requirements requirements
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
    -r requirements/server.txt -r requirements/build.txt
COPY . .
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
 && /venv/bin/pip uninstall --yes setuptools pip

FROM ${PYTHON}
RUN useradd --uid 10001 --home-dir /data --shell /usr/sbin/nologin notifier \
 && install -d -o notifier -g notifier /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8080 \
    DATA_DIR=/data
WORKDIR /data
USER 10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Liveness only: a database that is away must not get the container killed.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-m", "notifier.health"]
ENTRYPOINT ["notifier"]
CMD ["serve"]
