"""The provider's CDN: result URLs, and their failures."""

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from simulator.answers import json_answer, redirect, truncated
from simulator.pictures import Picture, Studio

FILES_MAX = 20_000  # a file describes its picture, drawn when fetched; the oldest is forgotten
METADATA_URL = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
OTHER_HOST_URL = "https://cdn.elsewhere.example/files/"
HTML = b"<!DOCTYPE html><html><head><title>503</title></head><body><h1>Service unavailable</h1></body></html>"
DENIED = b"<?xml version='1.0' encoding='utf-8'?><Error><Code>AuthenticationFailed</Code></Error>"
URL_S = 3600  # a signed URL's life, as stated in it

# Each changes the last image of a reply, or every one with `all`.
SCENARIOS = {
    "image_404": "The result URL answers 404.",
    "image_redirect_metadata": "The result URL redirects to a cloud's metadata address.",
    "image_redirect_secret": "The result URL redirects to an internal address with the provider key in its query.",
    "image_expired_403": "The result URL answers 403, as one that has run out.",
    "image_truncated": "The result URL closes in the middle of the image.",
    "image_html": "The result URL answers 200 with a page of HTML.",
    "image_other_host": "The result URL is on a host that belongs to nobody we know.",
}


@dataclass(frozen=True, slots=True)
class File:
    picture: Picture
    keep: bool = False
    scenario: str = "ok"
    key: str = ""  # the provider key of the client that ordered it
    signature: str | None = None  # required value of `sig` in the URL's query


class Files:
    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._files: OrderedDict[str, File] = OrderedDict()
        self._numbers = itertools.count(1)

    def add(self, file: File, base_url: str) -> str:
        """Add `file`; returns its URL. `base_url` ends with a slash."""
        name = f"{next(self._numbers):08x}.{file.picture.format}"
        if file.scenario == "image_other_host":
            return OTHER_HOST_URL + name + query_of(file)
        self._files[name] = file
        while len(self._files) > FILES_MAX:
            self._files.popitem(last=False)
        return f"{base_url}files/{name}{query_of(file)}"

    def routes(self) -> list[Route]:
        return [Route("/files/{name}", self._fetch)]

    async def _fetch(self, request: Request) -> ASGIApp:
        file = self._files.get(request.path_params["name"])
        if file is None or file.scenario == "image_404":
            return json_answer({"detail": "File not found"}, 404)
        signature = request.query_params.get("sig")
        if file.scenario == "image_expired_403" or file.signature not in (None, signature):
            return Response(DENIED, 403, media_type="application/xml")
        match file.scenario:
            case "image_redirect_secret":
                return redirect(file.key)
            case "image_redirect_metadata":
                return RedirectResponse(METADATA_URL, 302)
            case "image_html":
                return Response(HTML, media_type="text/html")
        drawing = await self._studio.draw(file.picture, file.keep)
        answer = Response(drawing.data, media_type=file.picture.content_type)
        return truncated(answer) if file.scenario == "image_truncated" else answer


def query_of(file: File) -> str:
    """Build the query of a signed URL, like a shared access signature; empty if it is not signed."""
    if file.signature is None:
        return ""
    now = datetime.now(UTC).replace(microsecond=0)
    fields = {
        "st": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "se": f"{now + timedelta(seconds=URL_S):%Y-%m-%dT%H:%M:%SZ}",
        "sp": "r",
        "sr": "b",
        "rsct": file.picture.content_type,
        "sig": file.signature,
    }
    return f"?{urlencode(fields)}"
