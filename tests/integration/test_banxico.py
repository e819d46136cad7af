"""A month's rate from Banxico, over real HTTP: answers in the SIE's form, and answers that are none."""

import hashlib
from datetime import date
from decimal import Decimal
from pathlib import Path

import httpx2
import orjson
import pytest

from metering.ports import FxOrigin, WrongField
from metering.pricing import FxRate
from proxy.banxico import BanxicoFailed, fetch, span_of
from tests.conftest import LOOPBACK
from tests.kits.raw_server import Peer, raw_server

ANSWER = Path(__file__).parent / "banxico_sf43718_2026_10.json"
"""In the SIE's form, with values made up for October 2026: 22 days, of which the 12th is a holiday with `N/E`."""

TODAY = date(2026, 11, 2)
TOKEN = "t" * 64


async def fetched(answer: bytes, status: str = "200 OK", method: str = "last") -> tuple[FxRate, FxOrigin, bytes]:
    """Fetch November's rate from a server that gives this answer; returns rate, origin and the request."""
    asked = b""

    async def banxico(peer: Peer) -> None:
        nonlocal asked
        asked = await peer.read_head()
        await peer.send(f"HTTP/1.1 {status}\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer)

    async with raw_server(banxico) as server, httpx2.AsyncClient(**LOOPBACK) as client:
        url = f"http://127.0.0.1:{server.port}/SieAPIRest/service/v1"
        rate, origin = await fetch(client, url, TOKEN, "2026-11", span_of("2026-11", method, TODAY), method)
    return rate, origin, asked


async def test_the_last_value_of_the_month_before_is_the_months_rate() -> None:
    """Its record says which series, how, what was printed, when, and the hash of the whole answer."""
    rate, origin, asked = await fetched(ANSWER.read_bytes())
    assert asked.startswith(b"GET /SieAPIRest/service/v1/series/SF43718/datos/2026-10-01/2026-10-31 HTTP/1.1\r\n")
    assert b"bmx-token: " + TOKEN.encode() in asked.lower() and TOKEN.encode() not in asked.partition(b"\r\n")[0]
    assert (rate.month, rate.mxn_per_usd, rate.source) == (
        "2026-11",
        Decimal("18.4337"),
        "Banxico SF43718 last 2026-10-30",
    )
    assert (origin.series, origin.method, origin.printed) == ("SF43718", "last", "18.4337")
    assert origin.raw_sha256 == hashlib.sha256(ANSWER.read_bytes()).hexdigest()


async def test_the_average_is_rounded_once_to_what_the_fix_has() -> None:
    """Of days with a value only: four decimals, half up."""
    answer = orjson.dumps(
        {
            "bmx": {
                "series": [
                    {
                        "idSerie": "SF43718",
                        "titulo": "FIX",
                        "datos": [
                            {"fecha": "01/10/2026", "dato": "18.0001"},
                            {"fecha": "02/10/2026", "dato": "N/E"},
                            {"fecha": "05/10/2026", "dato": "18.0002"},
                        ],
                    }
                ]
            }
        }
    )
    rate, origin, _ = await fetched(answer, method="average")
    assert rate.mxn_per_usd == Decimal("18.0002")
    assert origin.printed == "18.0001 18.0002"


def _answer(*rows: tuple[str, str], series: str = "SF43718") -> bytes:
    data = [{"fecha": day, "dato": value} for day, value in rows]
    return orjson.dumps({"bmx": {"series": [{"idSerie": series, "titulo": "x", "datos": data}]}})


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (b"", "401 Unauthorized", "GHUB_BANXICO_TOKEN: Banxico refuses the token"),
        (b"", "429 Too Many Requests", "Banxico answers 429"),
        (b"", "302 Found", "Banxico answers 302"),
        (b"<html>", "200 OK", "not what its documentation says"),
        (b'{"bmx": {"series": []}}', "200 OK", "not what its documentation says"),
        (_answer(("30/10/2026", "0")), "200 OK", "not what its documentation says"),
        (_answer(("30/10/2026", "NaN")), "200 OK", "not what its documentation says"),
        (_answer(("31/13/2026", "18.1")), "200 OK", "not what its documentation says"),
        (_answer(("30/10/2026", "18.1"), series="SF60653"), "200 OK", "is not of SF43718 from 2026-10-01"),
        (_answer(("30/09/2026", "18.1")), "200 OK", "is not of SF43718 from 2026-10-01"),
        (_answer(("12/10/2026", "N/E")), "200 OK", "Banxico has no value of SF43718 from 2026-10-01 to 2026-10-31"),
        (_answer(), "200 OK", "Banxico has no value"),
        (b" " * 300_000, "200 OK", "too large"),
    ],
)
async def test_an_answer_that_is_none_is_a_sentence_without_the_token(answer: bytes, status: str, says: str) -> None:
    with pytest.raises(BanxicoFailed, match=says) as told:
        await fetched(answer, status)
    assert TOKEN not in str(told.value)


async def test_nobody_there_is_a_sentence() -> None:
    async with httpx2.AsyncClient(**LOOPBACK) as client:
        with pytest.raises(BanxicoFailed, match=r"does not answer \(ConnectError\)"):
            await fetch(client, "http://127.0.0.1:9", TOKEN, "2026-11", span_of("2026-11", "last", TODAY), "last")


async def test_a_thousands_comma_is_read() -> None:
    rate, origin, _ = await fetched(_answer(("30/10/2026", "1,018.4")))
    assert (rate.mxn_per_usd, origin.printed) == (Decimal("1018.40"), "1,018.4")


@pytest.mark.parametrize(
    ("month", "method", "today", "says"),
    [
        ("2026-12", "average", date(2026, 11, 30), "the average of 2026-11 is known when that month is over"),
        ("2027-01", "last", date(2026, 11, 30), "which has not begun"),
    ],
)
def test_what_cannot_be_known_yet_is_refused(month: str, method: str, today: date, says: str) -> None:
    with pytest.raises(WrongField, match=says):
        span_of(month, method, today)


def test_a_month_that_is_not_over_ends_today() -> None:
    span = span_of("2026-12", "last", date(2026, 11, 27))
    assert (span.first, span.last, span.is_over) == (date(2026, 11, 1), date(2026, 11, 27), False)
    assert span_of("2026-12", "average", date(2026, 12, 1)).last == date(2026, 11, 30)
