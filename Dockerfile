# Two stages: pip and what it needs stay in the first; the second holds what was installed, and the migrations.
FROM python:3.13-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/rowcast
WORKDIR /src

# The dependencies are a layer of their own: it is built again only when these two files change.
COPY pyproject.toml requirements.lock ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > dependencies.txt \
 && /opt/rowcast/bin/pip install --constraint requirements.lock --requirement dependencies.txt

COPY README.md LICENSE ./
COPY app app
COPY alembic alembic
RUN /opt/rowcast/bin/pip install --no-deps .


FROM python:3.13-slim

RUN groupadd --system --gid 10001 rowcast \
 && useradd --system --uid 10001 --gid rowcast --no-create-home --shell /usr/sbin/nologin rowcast

COPY --from=build /opt/rowcast /opt/rowcast
# `alembic …` works in this folder; `rowcast migrate …` uses the copy inside the package, anywhere.
COPY alembic.ini /srv/rowcast/
COPY alembic /srv/rowcast/alembic

ENV PATH=/opt/rowcast/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /srv/rowcast
USER 10001:10001
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=4s --start-period=20s \
  CMD ["python", "-c", "import http.client, os, sys; hub = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('ROWCAST_PORT') or 8000), timeout=3); hub.request('GET', '/readyz'); sys.exit(hub.getresponse().status != 200)"]

# DATABASE_URL says which database, ROWCAST_KEY (or ROWCAST_KEY_FILES, ROWCAST_JWKS_URL) what tokens are checked with.
CMD ["rowcast", "serve", "--host", "0.0.0.0"]
