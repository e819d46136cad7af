"""GHUB_STORAGE_URL → the store, and the public URL of its images."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

import httpx2

from config.settings import Settings, SettingsError
from proxy.outbound.clients import store_client
from proxy.ports import ImageStore
from proxy.storage.local import LocalStore
from proxy.storage.s3 import S3
from proxy.storage.supabase import Auth, Key, MintedTokens, Supabase, public_url

DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Opened:
    """A store. `public_url` comes before an image's path; it is None if the gateway itself serves `folder`."""

    store: ImageStore
    public_url: str | None
    folder: Path | None = None


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncGenerator[Opened]:
    """Open the configured store, with its own connections, and close it at the end. No request is sent yet.

    Raises SettingsError, and StoreMisconfigured if a package for it is not installed.
    """
    if settings.storage_url is None:
        raise SettingsError("GHUB_STORAGE_URL is not set; for a local folder it is file:///path/to/images")
    if settings.storage_url.startswith("file://"):
        folder = Path(settings.storage_url.removeprefix("file://"))
        yield Opened(LocalStore(folder), settings.public_url, folder)
        return
    async with store_client() as client:
        address = urlsplit(settings.storage_url)
        yield _s3(settings, address, client) if address.scheme == "s3" else _supabase(settings, address, client)


def public_url_of(settings: Settings) -> str | None:
    """Find the public URL before an image's path, without a connection; None if only a running gateway knows it."""
    address = urlsplit(settings.storage_url or "")
    bucket = dict(parse_qsl(address.query)).get("bucket")
    if settings.public_url is None and bucket and address.scheme.startswith("supabase+"):
        return public_url(_supabase_url(address), bucket)
    return settings.public_url


def _supabase_url(address: SplitResult) -> str:
    return f"{address.scheme.removeprefix('supabase+')}://{address.netloc}{address.path.rstrip('/')}"


def _supabase(settings: Settings, address: SplitResult, client: httpx2.AsyncClient) -> Opened:
    bucket = _parameters(address, "bucket").get("bucket")
    if not address.netloc or not bucket:
        raise SettingsError("GHUB_STORAGE_URL: must be supabase+https://host/storage/v1?bucket=generated-images")
    url = _supabase_url(address)
    store = Supabase(client, url, bucket, _auth(settings))
    return Opened(store, settings.public_url or public_url(url, bucket))


def _auth(settings: Settings) -> Auth:
    key, secret = settings.storage_key, settings.storage_jwt_secret
    if key is not None and secret is None:
        return Key(key.get_secret_value())
    if secret is not None and key is None:
        return MintedTokens(secret.get_secret_value())
    raise SettingsError("GHUB_STORAGE_KEY: set it or GHUB_STORAGE_JWT_SECRET for a Supabase store, one of the two")


def _s3(settings: Settings, address: SplitResult, client: httpx2.AsyncClient) -> Opened:
    parameters = _parameters(address, "endpoint", "region")
    endpoint = parameters.get("endpoint")
    whole = address.netloc and not address.path.strip("/")
    if not whole or (endpoint is not None and not endpoint.startswith(("https://", "http://"))):
        raise SettingsError("GHUB_STORAGE_URL: must be s3://bucket?endpoint=https://host&region=region")
    if settings.public_url is None:
        raise SettingsError("GHUB_PUBLIC_URL is not set; s3:// needs the address at which everybody finds the images")
    usual = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
    store = S3(client, address.netloc, region=parameters.get("region", usual), endpoint=endpoint)
    return Opened(store, settings.public_url)


def _parameters(address: SplitResult, *known: str) -> dict[str, str]:
    given = dict(parse_qsl(address.query))
    if unknown := sorted(given.keys() - set(known)):
        raise SettingsError(f"GHUB_STORAGE_URL: {unknown[0]!r} is none of {address.scheme}'s {', '.join(known)}")
    return given
