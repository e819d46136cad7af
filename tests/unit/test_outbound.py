"""Which URLs and which addresses an image may be fetched from."""

import asyncio
import socket
from collections.abc import Sequence

import httpx2
import pytest

from config.addresses import is_public
from proxy.outbound.hosts import HostNotAllowed, ImageHosts, PublicNames
from proxy.outbound.pool import Address

HOSTS = ImageHosts(" fal.media, V3.Fal.Media., 93.184.216.34,10.0.0.1, xn--mnchen-3ya.de,,127.0.0.1:9000, [::1]:9001")


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("https://fal.media", "https://fal.media/"),
        ("https://fal.media/files/a%2Fb.png?sig=%7E#part", "https://fal.media/files/a%2Fb.png?sig=%7E"),
        ("HTTPS://FAL.media:443/x", "https://fal.media/x"),
        ("https://fal.media./x", "https://fal.media/x"),
        ("https://fal。media/x", "https://fal.media/x"),
        ("https://fal.media#@evil.example", "https://fal.media/"),
        ("https://v3.fal.media/x", "https://v3.fal.media/x"),
        ("https://münchen.de/", "https://xn--mnchen-3ya.de/"),
        ("https://93.184.216.34/x", "https://93.184.216.34/x"),
        ("http://127.0.0.1:9000/x", "http://127.0.0.1:9000/x"),
        ("https://127.0.0.1:9000/x", "https://127.0.0.1:9000/x"),
        ("http://[::1]:9001/x", "http://[::1]:9001/x"),
    ],
)
def test_a_listed_host_is_allowed_and_spelled_in_one_way(url: str, canonical: str) -> None:
    assert str(HOSTS.check(url)) == canonical


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fal.media/x",
        "//fal.media/x",
        "/x",
        "https:fal.media",
        "https:///fal.media",
        "https://",
        " https://fal.media/",
        "http://fal.media/",
        "http://fal.media:443/",
        "https://fal.media:80/",
        "https://fal.media:8443/",
        "https://fal.media:99999/",
        "https://fal.media:0/",
        "https://fal.media:x/",
        "ftp://fal.media/",
        "file://fal.media/etc/passwd",
        "wss://fal.media/",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "https://user@fal.media/",
        "https://user:password@fal.media/",
        "https://fal.media@evil.example/",
        "https://fal.media:443@evil.example/",
        "https://evil.example\\@fal.media/",
        "https://fal.media\\@evil.example/",
        "https://evil.example\\.fal.media/",
        "https://evil.example/?https://fal.media/",
        "https://evil.example#fal.media",
        "https://fal.media.evil.example/",
        "https://evilfal.media/",
        "https://evil.fal.media/",
        "https://media/",
        "https://fal.media../",
        "https://.fal.media/",
        "https://fal%2emedia/",
        "https://fal.media%00/",
        "https://fal.media%00.evil.example/",
        "https://fal.media\x00/",
        "https://fal.media\t/",
        "https://fal.media/\ud800",
        "https://fal.media\r\nhost: evil.example/",
        "https://ｆal.media/",
        "https://f\u0430l.media/",  # with a Cyrillic letter
        "https://10.0.0.1/",
        "https://1.1.1.1/",
        "https://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1/",
        "http://127.0.0.1:9001/",
        "http://127.1:9000/",
        "http://2130706433:9000/",
        "http://0x7f000001:9000/",
        "http://0177.0.0.1:9000/",
        "http://localhost:9000/",
        "http://[::1]/",
        "http://[::1]:9000/",
        "http://[::ffff:127.0.0.1]:9000/",
        "http://[0:0:0:0:0:0:0:1]:9001/",
        "http://[fe80::1%25eth0]:9001/",
        "http://[::1:9001/",
    ],
)
def test_every_other_spelling_is_refused(url: str) -> None:
    with pytest.raises(HostNotAllowed):
        HOSTS.check(url)


@pytest.mark.parametrize(
    ("location", "canonical"),
    [
        ("b.png?x=1", "https://fal.media/files/b.png?x=1"),
        ("/b.png", "https://fal.media/b.png"),
        ("//v3.fal.media/b.png", "https://v3.fal.media/b.png"),
        ("http://127.0.0.1:9000/b.png", "http://127.0.0.1:9000/b.png"),
    ],
)
def test_a_redirect_is_relative_to_where_it_came_from(location: str, canonical: str) -> None:
    assert str(HOSTS.check(location, base=httpx2.URL("https://fal.media/files/a.png"))) == canonical


@pytest.mark.parametrize(
    "location",
    ["http://fal.media/b.png", "//evil.example/b.png", "\\\\evil.example", "https://u@fal.media/", "http://["],
)
def test_a_redirect_off_the_list_is_refused(location: str) -> None:
    base = httpx2.URL("https://fal.media/files/a.png")
    try:
        target = HOSTS.check(location, base=base)
    except HostNotAllowed:
        return
    assert (target.scheme, target.host) == ("https", "fal.media")


def test_an_empty_list_allows_nothing() -> None:
    with pytest.raises(HostNotAllowed, match=r"not lead to an image host that is allowed\. Host: 'fal\.media'"):
        ImageHosts("").check("https://fal.media/")


@pytest.mark.parametrize(
    "entry",
    ["https://fal.media", "fal.media/x", "user@fal.media", "fal media", "fal.media:x", "fal.media:99999", "[::1", ":80"]
    + ["fal.media?x", "fal.media#x", "fal%2emedia", "."],
)
def test_an_entry_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="not host or host:port"):
        ImageHosts(f"fal.media,{entry}")


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1", "2a00:1450:4001::1"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",  # carrier-grade NAT
        "100.100.100.200",  # a metadata service inside it
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",  # a metadata service at a public address
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:0:127.0.0.1",
        "64:ff9b::a9fe:a9fe",  # NAT64 of 169.254.169.254
        "64:ff9b:1::1",
        "100::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_that_is_not_of_the_internet_is_not_public(address: str) -> None:
    assert not is_public(address)


def resolved(host: str, port: int, *addresses: str) -> list[str]:
    async def every_name(host: str, port: int) -> Sequence[Address]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in addresses]

    guard = PublicNames(ImageHosts("fal.media, store.example:9000"), every_name)
    return [address[4][0] for address in asyncio.run(guard(host, port))]


def test_the_addresses_that_were_checked_are_the_ones_given() -> None:
    assert resolved("fal.media", 443, "93.184.216.34", "2606:4700::1") == ["93.184.216.34", "2606:4700::1"]


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:10.0.0.1"]])
def test_one_private_address_refuses_the_name(addresses: list[str]) -> None:
    with pytest.raises(HostNotAllowed):
        resolved("fal.media", 443, *addresses)


def test_a_name_with_its_port_may_be_private_on_that_port_only() -> None:
    assert resolved("store.example", 9000, "10.0.0.1") == ["10.0.0.1"]
    with pytest.raises(HostNotAllowed):
        resolved("store.example", 443, "10.0.0.1")
