"""Which program sent a request: a name of the list with its version, whatever else the header says."""

import pytest

from proxy.api.senders import OTHER, PRODUCTS, sender_of

KEY = "ghub_sk_live_" + "a" * 32


@pytest.mark.parametrize(
    ("user_agent", "sender"),
    [
        ("OpenAI/Python 2.8.1", "OpenAI/Python 2.8.1"),
        ("AsyncOpenAI/Python 2.8.1", "AsyncOpenAI/Python 2.8.1"),
        ("OpenAI/JS 6.9.0", "OpenAI/JS 6.9.0"),
        ("curl/8.5.0", "curl 8.5.0"),
        ("ai/5.0.106 ai-sdk/provider-utils/3.0.18 runtime/node.js/24", "ai 5.0.106"),
        ("ai-sdk/openai-compatible/1.0.1 secret", "ai-sdk/openai-compatible 1.0.1"),
        ("Mozilla/5.0 (X11; Linux x86_64) secret", "Mozilla 5.0"),
        ("python-httpx/0.28.1", "python-httpx 0.28.1"),
        ("", OTHER),
        (KEY, OTHER),
        (f"curl/{KEY}", OTHER),
        (f"curl/8.5.0{KEY}", OTHER),
        ("curl/" + "1" * 40, OTHER),
        ("x curl/8.5.0", OTHER),
        ("curl", OTHER),
        ("CURL/8.5.0", OTHER),
    ],
)
def test_a_sender_is_a_product_of_the_list_and_its_version(user_agent: str, sender: str) -> None:
    """Anything else is `other`."""
    assert sender_of(user_agent) == sender


def test_every_product_is_found() -> None:
    """None is hidden by another that begins like it."""
    assert [sender_of(f"{name}/1.2") for name in PRODUCTS] == [f"{name} 1.2" for name in PRODUCTS]
