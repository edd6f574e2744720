import socket

import pytest

from landmarks.mirrors import addresses, download
from landmarks.running.command import InputError


@pytest.fixture
def server(serve, tmp_path):
    (tmp_path / "photo").write_bytes(b"body")
    return serve(tmp_path)


@pytest.fixture
def names(monkeypatch) -> dict[str, list[list[str]]]:
    """Names and the addresses that each look-up finds, in turn; in these tests 127.0.0.1 and ::1 are public."""
    found: dict[str, list[list[str]]] = {}
    original = socket.getaddrinfo

    def look_up(host, port, *arguments, **options):
        if host not in found:
            return original(host, port, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found[host].pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(addresses, "is_public", lambda address: address in ("127.0.0.1", "::1"))
    return found


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "0.0.0.0",
        "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fec0::1", "fc00::1", "fd00::1", "ff02::1", "ff0e::1", "2001:db8::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1",
        "::10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::10.0.0.1", "2002:a00:1::", "4000::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"]
)
def test_public_addresses(address):
    assert addresses.is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_private_address_is_refused_however_it_is_written(server, host, scheme):
    url = f"{scheme}://{host}:{server.server_address[1]}/photo"
    with pytest.raises(OSError, match=r"at the private address .*--allow-private"):
        download.read(url, 100)
    assert server.requests == []


def test_a_private_address_is_read_when_that_is_allowed(server):
    assert download.read(f"{server.url}/photo", 100, allow_private=True) == b"body"


def test_a_redirect_to_a_private_address_is_refused(server, names):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", "http://10.1.2.3/photo")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.faults["/photo"] = [redirect]
    with pytest.raises(OSError, match="10.1.2.3 is at the private address 10.1.2.3"):
        download.read(f"{server.url}/photo", 100)
    assert len(server.requests) == 1


def test_what_is_connected_to_is_what_was_checked(server, names):
    names["photos.test"] = [["127.0.0.1"], ["10.1.2.3"]]
    assert download.read(f"http://photos.test:{server.server_address[1]}/photo", 100) == b"body"
    assert names["photos.test"] == [["10.1.2.3"]]


def test_one_private_address_among_others_is_enough(server, names):
    names["photos.test"] = [["127.0.0.1", "10.1.2.3"]]
    with pytest.raises(OSError, match="photos.test is at the private address 10.1.2.3"):
        download.read(f"http://photos.test:{server.server_address[1]}/photo", 100)
    assert server.requests == []


def test_the_next_address_is_tried_where_one_is_dead(server, names):
    names["photos.test"] = [["::1", "127.0.0.1"]]
    assert download.read(f"http://photos.test:{server.server_address[1]}/photo", 100) == b"body"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_hides_the_addresses(monkeypatch, variable):
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=f"{variable.upper()}: .*unset it, or give --allow-private"):
        addresses.require_no_proxy()
    if variable == "HTTP_PROXY":
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # requests takes the small letters
    with pytest.raises(OSError, match="through the proxy"):
        download.read("https://8.8.8.8/" if variable == "https_proxy" else "http://8.8.8.8/", 100)
