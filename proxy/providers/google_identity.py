"""Our identity at Google Cloud, by google-auth: a service account, an external one, or the metadata server's."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import orjson
from google.auth import aws, environment_vars, exceptions, identity_pool
from google.oauth2 import service_account

SCOPE = "https://www.googleapis.com/auth/cloud-platform"

METADATA_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"

_SOURCES = frozenset({"file", "url", "environment_id"})
"""Allowed sources of the token that an external account shows to Google. No programs are run, no certificates shown."""


Request = Callable[..., Any]
"""`google.auth.transport.Request`: one blocking exchange over HTTP."""


class Identity(Protocol):
    """The part of `google.auth.credentials.Credentials` that we use. `expiry` is UTC, and naive."""

    token: Any
    expiry: datetime | None

    def refresh(self, request: Request) -> None: ...


class BadServiceAccount(Exception):
    """The account's file cannot be read, or is no account; the message is a sentence."""


class Metadata:
    """The identity that the metadata server of GKE, Compute Engine or Cloud Run gives.

    google-auth's own class for it cannot be imported without `requests`.
    """

    def __init__(self) -> None:
        names = (environment_vars.GCE_METADATA_HOST, environment_vars.GCE_METADATA_ROOT)
        host = next(filter(None, map(os.environ.get, names)), "metadata.google.internal")
        self._url = f"http://{host}{METADATA_PATH}?scopes={SCOPE}"
        self.token: Any = None
        self.expiry: datetime | None = None

    def refresh(self, request: Request) -> None:
        """Take the server's token. If the reply has none, any error that Python raises for it is raised."""
        reply = orjson.loads(request(self._url, headers={"metadata-flavor": "Google"}).data)
        ends = datetime.now(UTC) + timedelta(seconds=reply["expires_in"])
        self.token, self.expiry = reply["access_token"], ends.replace(tzinfo=None)


def read_identity(path: Path) -> tuple[Identity, str | None]:
    """Read the account in a file, and its project if the file names one. Raises BadServiceAccount."""
    try:
        account = orjson.loads(path.read_bytes())
    except OSError as error:
        raise BadServiceAccount(f"{path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        account = None
    wrong = f"{path} is no service account's JSON:"
    if not isinstance(account, dict):
        raise BadServiceAccount(f"{wrong} it holds no JSON object")
    match account.get("type", "service_account"):
        case "service_account":
            return _service_account(account, wrong), account["project_id"]
        case "external_account":
            return _external_account(account, f"{path} is no external account's JSON:"), None
    raise BadServiceAccount(f"{wrong} `type` is neither service_account nor external_account")


def _service_account(account: dict[str, Any], wrong: str) -> Any:
    _check_texts(account, ("client_email", "token_uri", "private_key", "project_id"), wrong)
    claims = {"aud": account["token_uri"]}
    try:
        identity = service_account.Credentials.from_service_account_info(
            account, scopes=[SCOPE], additional_claims=claims
        )
        identity.sign_bytes(b"")
    except (ValueError, TypeError, AttributeError):
        raise BadServiceAccount(f"{wrong} `private_key` is no RSA key in PEM") from None
    return identity


def _external_account(account: dict[str, Any], wrong: str) -> Any:
    _check_texts(account, ("audience", "subject_token_type", "token_url"), wrong)
    source = account.get("credential_source")
    if not isinstance(source, dict) or not source.keys() & _SOURCES:
        raise BadServiceAccount(f"{wrong} `credential_source` has no `file`, no `url` and no `environment_id`")
    kind: Any = aws.Credentials if "environment_id" in source else identity_pool.Credentials
    try:
        identity = kind.from_info(account, scopes=[SCOPE])
        if "file" in source:
            identity.retrieve_subject_token(None)
    except (exceptions.GoogleAuthError, OSError, ValueError, TypeError, AttributeError) as error:
        raise BadServiceAccount(f"{wrong} {error}") from None
    return identity


def _check_texts(account: dict[str, Any], names: tuple[str, ...], wrong: str) -> None:
    for name in names:
        if not isinstance(account.get(name), str) or not account[name]:
            raise BadServiceAccount(f"{wrong} `{name}` is missing, or no text")
