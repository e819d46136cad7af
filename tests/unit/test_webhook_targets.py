"""Where webhooks may lead: only https on the public internet, unless the operator has named the host."""

import base64

import pytest

from config.settings import read_settings
from proxy.messages import NO_TARGET, TARGET_LONG, TARGET_PLAIN, TARGET_PRIVATE, TARGET_USER, Text
from proxy.webhooks.settings import read_webhook_rules
from proxy.webhooks.targets import MAX_CHARACTERS, WebhookHosts, why_not

NONE = WebhookHosts("")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.mx",
        "https://hooks.example.mx/ghub?tenant=7&token=a%20b",
        "HTTPS://Hooks.Example.MX:8443/Path",
        "https://xn--maana-pta.mx/",
        "https://1.1.1.1/in",
        "https://[2606:4700:4700::1111]/in",
    ],
)
def test_a_public_https_address_is_taken(url: str) -> None:
    assert why_not(url, NONE) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.mx/", TARGET_PLAIN),
        ("https://user:secret@example.mx/", TARGET_USER),
        ("https://example.mx@127.0.0.1/", TARGET_USER),
        ("https://127.0.0.1/", TARGET_PRIVATE),
        ("https://169.254.169.254/latest/meta-data", TARGET_PRIVATE),
        ("https://10.0.0.7/", TARGET_PRIVATE),
        ("https://[::1]/", TARGET_PRIVATE),
        ("https://[::ffff:127.0.0.1]/", TARGET_PRIVATE),
        ("https://[fd00::1]/", TARGET_PRIVATE),
        ("https://localhost/", TARGET_PRIVATE),
        ("https://valkey/", TARGET_PRIVATE),
        ("https://valkey.prod.svc.cluster.local/", TARGET_PRIVATE),
        ("https://metadata.google.internal./", TARGET_PRIVATE),
        ("https://127.1/", NO_TARGET),
        ("https://0x7f000001/", NO_TARGET),
        ("https://2130706433/", NO_TARGET),
        ("https://example.mx:0/", NO_TARGET),
        ("https://example.mx:65536/", NO_TARGET),
        ("https://example.mx#x", NO_TARGET),
        ("https://example.mx\\@127.0.0.1/", NO_TARGET),
        ("https://exa mple.mx/", NO_TARGET),
        ("https://example.mx/a\r\nhost: b", NO_TARGET),
        ("https://-example.mx/", NO_TARGET),
        ("https://mañana.mx/", NO_TARGET),
        ("ftp://example.mx/", NO_TARGET),
        ("example.mx/", NO_TARGET),
        ("", NO_TARGET),
        ("https://example.mx/" + "a" * MAX_CHARACTERS, TARGET_LONG),
    ],
)
def test_another_is_refused_with_the_reason(url: str, why: Text) -> None:
    """The sentence names the field, and is told in both languages."""
    refusal = why_not(url, NONE, "webhook")
    assert refusal is not None and refusal.startswith(why[:12].replace("{name}", "webhook"))
    assert refusal.split("`")[1] == refusal.es.split("`")[1] == "webhook"
    if why is not NO_TARGET:
        assert refusal != NO_TARGET.of(name="webhook")


def test_what_the_operator_names_is_taken_by_http_and_at_any_address() -> None:
    """With a port only there, without one at every port."""
    hosts = WebhookHosts("localhost:8081, hooks.test,[::1]:80")
    taken = ["http://localhost:8081/x", "https://LOCALHOST:8081/x", "http://hooks.test/", "https://hooks.test:8443/"]
    assert [why_not(url, hosts) for url in [*taken, "http://[::1]/"]] == [None] * 5
    assert why_not("http://localhost:8082/", hosts) == TARGET_PLAIN.of(name="webhook")
    assert why_not("https://localhost/", hosts) == TARGET_PRIVATE.of(name="webhook", host="localhost")


@pytest.mark.parametrize("text", ["http://a.mx", "a.mx/x", "a.mx?x", "u@a.mx", "a.mx:0x", "127.1"])
def test_a_list_of_hosts_holds_hosts_alone(text: str) -> None:
    with pytest.raises(ValueError, match="not host or host:port"):
        WebhookHosts(text)


def test_commands_and_the_admin_api_name_the_field_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They write the field's name and a colon before it, and the admin API a full stop behind it."""
    monkeypatch.setenv("GHUB_SECRETS_KEY", base64.b64encode(bytes(32)).decode())
    rules = read_webhook_rules(read_settings())
    assert rules is not None and rules.why_not("http://example.mx/") == "must begin with https://"
    assert rules.why_not("https://example.mx/") is None
