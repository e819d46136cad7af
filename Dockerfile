# python:3.11-slim-bookworm with CPython 3.11.16, by the digest of its index for all machines. Security fixes of the base
# come with a new digest: `docker buildx imagetools inspect python:3.11-slim-bookworm`, then this line.
ARG PYTHON_IMAGE=python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# --- build: tools in one environment, the gateway in another, so that no tool gets into the image ---------------------
FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY requirements/build.txt requirements/gateway.txt requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r requirements/build.txt
# pip compiles what it installs: the image needs no write to its own files.
RUN python -m venv --without-pip /opt/ghub \
    && /opt/build/bin/pip --python /opt/ghub/bin/python install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r requirements/gateway.txt
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY metering metering
COPY proxy proxy
RUN /opt/build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /opt/dist . \
    && /opt/build/bin/pip --python /opt/ghub/bin/python install --no-cache-dir --no-index --no-deps /opt/dist/*.whl \
    && /opt/build/bin/pip --python /opt/ghub/bin/python check
# What is in /opt/ghub, by itself; the base's own packages are in the base's.
RUN /opt/build/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
        --output-format JSON --output-file /opt/ghub/sbom.cdx.json /opt/ghub/bin/python

# --- the image ----------------------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="GeekHub image gateway" \
      org.opencontainers.image.description="One OpenAI-compatible endpoint, images in your own storage, charged exactly once." \
      org.opencontainers.image.vendor="GeekHub" \
      org.opencontainers.image.licenses="Apache-2.0"
# Upstreams are trusted by the system's store; a base image without one must fail here and not at the first request.
RUN test -s /etc/ssl/certs/ca-certificates.crt
COPY --from=build /opt/ghub /opt/ghub
# PostgreSQL's driver brings an OpenSSL that looks elsewhere for the roots of `sslrootcert=system`.
ENV PATH=/opt/ghub/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    GHUB_HOST=0.0.0.0
# By number, so that Kubernetes can see that it is not root. Nothing is written but /tmp and what the settings name.
USER 10001:10001
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["ghub"]
CMD ["serve"]
