FROM python:3.12-slim AS build
WORKDIR /build
RUN python -m venv /venv
# Dependencies change seldom: their layer is made from the metadata alone. The package itself is taken out again, so
# that there is one copy of the code, the one in /app.
COPY setup.cfg setup.py pyproject.toml constraints.txt ./
COPY notifier/__init__.py notifier/
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt . \
 && /venv/bin/pip uninstall --yes notifier-server

FROM python:3.12-slim
RUN useradd --uid 10001 --home-dir /app --shell /usr/sbin/nologin notifier \
 && install -d -o notifier -g notifier /data
WORKDIR /app
COPY --from=build /venv /venv
COPY . .
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8080 \
    DATA_DIR=/data
USER 10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Liveness only: a database that is away must not get the container killed.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/healthz', timeout=4)"]
ENTRYPOINT ["python", "server.py"]
CMD ["serve"]
