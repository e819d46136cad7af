"""Google by API key (Gemini API) or by identity (Vertex), pictures as base64 in JSON: Imagen's `:predict` here."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx2
import orjson

from config.settings import RESULT_DOCUMENT_BYTES, Settings, SettingsError
from proxy.media.inline import JsonPictures
from proxy.outbound.clients import Outbound
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Picture, Provider
from proxy.providers.google_content import generate_content
from proxy.upstream import (
    by_status,
    items_of,
    note_id,
    note_prompt,
    post_for_pictures,
    rest_of,
)

if TYPE_CHECKING:
    from proxy.providers.google_token import ServiceAccount

_BLOCKED_PROMPT = ("could not be submitted", "safety", "responsible ai", "sensitive words", "58061214", "39322892")

_IMAGEN = "imagen-"
"""Models with this prefix have the older wire format."""

GEMINI_URL = "https://generativelanguage.googleapis.com/v1beta"

NAME = "google"


class Credentials(Protocol):
    """The headers that say who pays."""

    async def headers(self) -> dict[str, str]: ...

    def refused(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of the Gemini API."""

    key: str

    async def headers(self) -> dict[str, str]:
        """Return the key's header."""
        return {"x-goog-api-key": self.key}

    def refused(self) -> None:
        """Do nothing: a key is not renewed by itself."""


class Google:
    """The adapter. `models_url` ends before `/MODEL:predict` or `/MODEL:generateContent`."""

    def __init__(
        self, client: httpx2.AsyncClient, models_url: str, credentials: Credentials, document_bytes: int
    ) -> None:
        self._client = client
        self._models_url = models_url
        self._credentials = credentials
        self._document_bytes = document_bytes

    async def generate(self, call: Call) -> AsyncGenerator[Picture]:
        """Yield the call's pictures, one after the other, while the reply arrives. Raises Failure."""
        headers = await self._credentials.headers()
        url = f"{call.order.model.url or self._models_url}/{call.order.model.upstream}"
        if call.order.model.upstream.startswith(_IMAGEN):
            pictures = self._predict(f"{url}:predict", headers, call)
        else:
            url += ":generateContent"
            pictures = generate_content(self._client, url, headers, call, self._document_bytes, _refusal)
        try:
            async with aclosing(pictures):
                async for picture in pictures:
                    yield picture
        except Failure as failure:
            if failure.outcome is Outcome.NOT_AUTHORISED:
                self._credentials.refused()
            raise

    async def _predict(self, url: str, headers: dict[str, str], call: Call) -> AsyncGenerator[Picture]:
        document = JsonPictures("predictions", "bytesBase64Encoded", self._document_bytes)
        pictures = post_for_pictures(self._client, url, headers, _body(call), call, document, _refusal)
        async with aclosing(pictures):
            async for picture in pictures:
                yield picture
        rest = rest_of(document)
        if rest and "predictions" not in rest:
            raise Failure(Outcome.BAD_REPLY, "no predictions")
        _read(call, rest)
        missing = call.images - len(call.report.numbers)
        if missing:
            # A filtered picture is simply missing, with a reason or without; if all are filtered, the reply is `{}`.
            raise Failure(Outcome.CONTENT_POLICY, f"{missing} filtered")


def _body(call: Call) -> dict[str, Any]:
    order = call.order
    parameters: dict[str, Any] = {
        "sampleCount": call.images,
        "aspectRatio": order.model.sizes[order.size],
        "includeRaiReason": True,
    }
    output: dict[str, Any] = {}
    if "output_format" in order.fields:
        output["mimeType"] = order.fields["output_format"]
    if "output_compression" in order.fields:
        output["compressionQuality"] = order.fields["output_compression"]
    if output:
        parameters["outputOptions"] = output
    return {"instances": [{"prompt": order.prompt}], "parameters": parameters}


def _read(call: Call, rest: dict[str, Any]) -> None:
    note_id(call.report, rest.get("responseId"))
    for place, prediction in items_of(rest, "predictions"):
        number = call.report.numbers.get(place)
        if number is not None:
            note_prompt(call.report, number, prediction.get("prompt"))


def _refusal(response: httpx2.Response, body: bytes) -> Failure:
    try:
        message = str(orjson.loads(body)["error"]["message"]).lower()
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = ""
    if response.status_code == 400 and any(words in message for words in _BLOCKED_PROMPT):
        return Failure(Outcome.CONTENT_POLICY)
    if response.status_code == 400 and b"API_KEY_INVALID" in body:
        return Failure(Outcome.NOT_AUTHORISED, "the key is not valid")
    if response.status_code == 404:
        return Failure(Outcome.RETIRED)
    return by_status(response)


def from_settings(settings: Settings, outbound: Outbound) -> Provider | None:
    """Build the adapter; a Google Cloud identity goes before a key; None if neither is set. Raises SettingsError."""
    if settings.google_service_account is not None:
        account = _service_account(settings.google_service_account, outbound)
        project = settings.google_project or account.project
        if project is None:
            raise SettingsError("GHUB_GOOGLE_PROJECT: set it; only a service account's own file names its project")
        base = settings.google_url or f"https://{settings.google_location}-aiplatform.googleapis.com/v1"
        models = f"{base}/projects/{project}/locations/{settings.google_location}/publishers/google/models"
        return Google(outbound.client, models, account, RESULT_DOCUMENT_BYTES)
    if settings.google_key is not None:
        key = ApiKey(settings.google_key.get_secret_value())
        return Google(outbound.client, f"{settings.google_url or GEMINI_URL}/models", key, RESULT_DOCUMENT_BYTES)
    return None


def _service_account(source: Path | Literal["default"], outbound: Outbound) -> "ServiceAccount":
    """Open an identity. This is the loader of google-auth, which a key does not need. Raises SettingsError."""
    from proxy.providers.google_identity import BadServiceAccount  # noqa: PLC0415
    from proxy.providers.google_token import ServiceAccount  # noqa: PLC0415

    try:
        return ServiceAccount(outbound.client, source)
    except BadServiceAccount as error:
        raise SettingsError(f"GHUB_GOOGLE_SERVICE_ACCOUNT: {error}") from None
