"""Which program sent a request, by its `User-Agent`: a product of a list, and its version. Pure.

The header itself is not logged: it may contain anything, a key among others.
"""

import re

PRODUCTS = (
    "OpenAI/Python",
    "AsyncOpenAI/Python",
    "OpenAI/JS",
    "OpenAI/Go",
    "OpenAI/Java",
    "OpenAI/Ruby",
    "ai",
    "ai-sdk/openai",
    "ai-sdk/openai-compatible",
    "aiohttp",
    "axios",
    "Bun",
    "curl",
    "Deno",
    "Go-http-client",
    "GuzzleHttp",
    "Mozilla",
    "node",
    "node-fetch",
    "okhttp",
    "PostmanRuntime",
    "python-httpx",
    "python-requests",
    "Python-urllib",
    "undici",
    "Wget",
)
"""Clients that customers use: OpenAI's libraries, the AI SDK, the HTTP libraries of languages, browsers and tools."""

_SENDER = re.compile(
    rf"({'|'.join(map(re.escape, PRODUCTS))})[/ ]v?([0-9]{{1,4}}(?:\.[0-9]{{1,4}}){{0,3}})(?![0-9A-Za-z.])",
)

OTHER = "other"
"""A client that is not in the list, or that says nothing."""


def sender_of(user_agent: str) -> str:
    """Name the product with which the header begins, as `OpenAI/Python 2.8.1` or `curl 8.5.0`; `other` if not known."""
    found = _SENDER.match(user_agent)
    return f"{found[1]} {found[2]}" if found else OTHER
