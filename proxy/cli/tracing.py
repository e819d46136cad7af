"""OpenTelemetry's variables → a tracer, for `serve` and `consume`."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import structlog

from config.settings import Settings
from metering.tracing import OFF, Tracer
from proxy.cli.loading import loading

log = structlog.get_logger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables that name the collector. The first one that is set counts."""

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


@asynccontextmanager
async def open_tracer(settings: Settings, environment: Mapping[str, str], service: str) -> AsyncIterator[Tracer]:
    """Yield the tracer that the variables ask for, and send the last spans at the end; OFF if they ask for none.

    These variables are often a platform's, for all of its programs. So one that is wrong ends no start: nothing is
    traced, and the log says why.
    """
    if _is_off(environment):
        yield OFF
        return
    if (why := _why_not(environment)) is not None:
        log.warning("tracing_off", why=why)
        yield OFF
        return
    try:
        with loading(hidden=()):
            from proxy.otel import open_tracer as open_otel  # noqa: PLC0415  # the loader of the extra `otel`

        tracer = open_otel(service, settings.region, settings.trace_context)
    except ImportError:
        why = f"{_endpoint(environment)[0]} is set, and its package is not installed; install it with: "
        log.warning("tracing_off", why=why + "pip install 'geekhub-gateway[otel]'")
        yield OFF
        return
    except ValueError as error:
        log.warning("tracing_off", why=f"OpenTelemetry refuses one of its variables: {error}")
        yield OFF
        return
    log.info("tracing", collector=urlsplit(_endpoint(environment)[1]).hostname)
    try:
        yield tracer
    finally:
        await tracer.aclose()


def _is_off(environment: Mapping[str, str]) -> bool:
    """Return whether nobody wants traces."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or not _endpoint(environment)[1] or environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none"


def _why_not(environment: Mapping[str, str]) -> str | None:
    """Say why traces that somebody wants cannot be sent, as far as the variables say."""
    name, address = _endpoint(environment)
    if not address.startswith(("http://", "https://")):
        return f"{name}: must start with http:// or https://"
    name, protocol = _first(environment, _PROTOCOLS)
    if protocol not in ("", _PROTOCOL):
        return f"{name}: is not {_PROTOCOL}, the one that is spoken here; collectors take it at port 4318"
    return None


def _endpoint(environment: Mapping[str, str]) -> tuple[str, str]:
    return _first(environment, ENDPOINTS)


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """Find the first of these variables that is set, and its value; the last one's name and nothing if none is."""
    return next(((name, value) for name in names if (value := environment.get(name, "").strip())), (names[-1], ""))
