"""IP addresses: which of them are on the public internet."""

import ipaddress

_GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")  # all other ranges embed IPv4 (mapped, NAT64) or are local
_6TO4 = ipaddress.IPv6Network("2002::/16")  # inside 2000::/3, but embeds an IPv4 address
_AZURE_METADATA = ipaddress.IPv4Address("168.63.129.16")  # the only metadata service at a public address


def is_address(host: str) -> bool:
    """True if a host is an IP address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """True if an IP address is on the public internet, and neither multicast nor a metadata service."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.is_global and ip in _GLOBAL_UNICAST_V6 and ip not in _6TO4
    return ip.is_global and not ip.is_multicast and ip != _AZURE_METADATA
