"""Which addresses the URLs of a list may lead to: public ones alone, lest the list be a way into someone's network."""

import ipaddress
import socket
from typing import Any

import requests
import urllib3

from landmarks.running.command import InputError

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # an IPv4 address in the last 32 bits (RFC 6052)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet; an IPv4 address within an IPv6 one counts as itself."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ipaddress.IPv4Address(ip.packed[-4:]) if ip in NAT64 else ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False))


def require_no_proxy() -> None:
    """Raise InputError where a proxy would look the names up, so that nobody here sees which addresses they have."""
    if proxies := {"http", "https", "all"} & requests.utils.getproxies().keys():
        names = " and ".join(f"{scheme.upper()}_PROXY" for scheme in sorted(proxies))
        raise InputError(
            f"{names}: through a proxy private addresses cannot be told from public ones; unset it, or give "
            "--allow-private if you trust all URLs of the list"
        )


class PublicAdapter(requests.adapters.HTTPAdapter):
    """Connects to public addresses alone, after a redirect too. Raises InputError for any other."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _PublicPool, "https": _PublicTLSPool}

    def proxy_manager_for(self, proxy: str, **_: Any) -> Any:
        raise InputError(f"through the proxy {proxy} private addresses cannot be told from public ones")


class _PublicConnection(urllib3.connection.HTTPConnection):
    def _new_conn(self) -> socket.socket:
        # What is checked is what is connected to: a second look-up of the name might lead elsewhere (DNS rebinding).
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = [str(place[0]) for *_, place in found]
        for address in addresses:
            if not is_public(address):
                raise InputError(f"{self.host} is at the private address {address}; --allow-private lets it be fetched")
        for address in addresses:
            try:
                return urllib3.util.connection.create_connection(
                    (address, self.port), self.timeout, self.source_address, self.socket_options
                )
            except OSError as error:
                failure = error
        raise failure


class _PublicTLSConnection(_PublicConnection, urllib3.connection.HTTPSConnection):
    pass


class _PublicPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PublicConnection


class _PublicTLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PublicTLSConnection
