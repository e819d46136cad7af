"""Numbers whose order matters, and variables whose errors name them."""

from pathlib import Path

import pytest

from config import settings
from config.settings import SettingsError, graceful_stop_s, hold_life_s, read_settings, reply_margin_s


@pytest.mark.rule(5)
@pytest.mark.parametrize("deadline_s", [1.0, 10.0, 20.0, 60.0, settings.LONGEST_DEADLINE_S])
def test_time_limits_stand_in_order(deadline_s: float) -> None:
    """Settlement < deadline < hold's life < the server's stop < the platform's kill, for every deadline (rule 5)."""
    assert 0 < reply_margin_s(deadline_s) < deadline_s
    assert deadline_s + settings.HOLD_MARGIN_S <= hold_life_s(deadline_s) < graceful_stop_s(deadline_s)
    stopped_s = settings.PRE_STOP_S + graceful_stop_s(deadline_s) + settings.EXIT_MARGIN_S
    assert stopped_s <= settings.PLATFORM_GRACE_S


def test_the_end_of_an_order_is_remembered_beyond_its_hold() -> None:
    """So that a repeated settlement always finds its answer."""
    assert 10 * hold_life_s(settings.LONGEST_DEADLINE_S) < settings.CLOSED_S


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GHUB_PORT", "70000"),
        ("GHUB_PORT", "http"),
        ("GHUB_DEADLINE_S", "0.5"),
        ("GHUB_DEADLINE_S", "600"),
        ("GHUB_REDIS_URL", "http://redis"),
        ("GHUB_LEDGER_URL", "mysql://x"),
        ("GHUB_STORAGE_URL", "ftp://x"),
        ("GHUB_FX_GRACE_H", "-1"),
        ("GHUB_LOG_LEVEL", "loud"),
        ("GHUB_FAL_MODE", "maybe"),
        ("GHUB_JWT_SECRET", "31 bytes are not enough for us."),
        ("GHUB_JWKS_URL", "supabase.co"),
        ("GHUB_JWKS_URL", "http://keys.example/jwks.json"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """One sentence, which never repeats a secret's value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        read_settings()
    if name in ("GHUB_REDIS_URL", "GHUB_JWT_SECRET"):
        assert value not in str(caught.value)


def test_variables_are_read_without_their_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret's file ends with a newline; an empty variable counts as unset."""
    monkeypatch.setenv("GHUB_REDIS_URL", "redis://localhost:6379\n")
    monkeypatch.setenv("GHUB_MODELS", " models.toml ")
    monkeypatch.setenv("GHUB_PORT", "")
    read = read_settings()
    assert read.redis_url is not None
    assert read.redis_url.get_secret_value() == "redis://localhost:6379"
    assert read.models == Path("models.toml")
    assert read.port == 8080
