"""A device pulls over real connections: whole, cut, resumed, refused."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts import certificate, sha256
from delivery import KIND, NEW, OLD, QUICK, Site, fails, first, get, open_site, passes
from fedofa.client.link import Address
from fedofa.client.pull import pull
from fedofa.client.store import DeviceStore
from fedofa.protos.depot import CHUNK_BYTES
from fedofa.server.depot import serve_depot
from fedofa.supernet.errors import DepotError, UsageError
from tcp_proxy import Proxy


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as opened:
        yield opened


def test_a_pull_puts_the_published_model_in_use(site: Site) -> None:
    published = site.publish(NEW)
    result = site.get()
    assert (result.activated, result.downloaded_bytes) == (True, len(NEW[KIND]))
    assert result.model.manifest == published
    assert site.in_use() == NEW[KIND]
    assert not list(site.store.folder.glob("parts/*"))


def test_a_second_pull_downloads_nothing(site: Site) -> None:
    site.publish(NEW)
    site.get()
    result = site.get(golden=fails)
    assert (result.activated, result.downloaded_bytes) == (False, 0)


@pytest.mark.parametrize("name", ["model.fp32.onnx", "manifest.json"])
def test_a_file_damaged_on_the_device_is_pulled_again(site: Site, name: str) -> None:
    site.publish(OLD)
    site.get()
    site.publish(NEW)
    folder = site.get().model.folder
    (folder / name).write_bytes(b"damaged")
    assert site.get().activated
    assert site.in_use() == NEW[KIND]
    previous = site.store.previous()
    assert previous is not None
    assert previous.manifest.version == 1


# Bytes that a connection carries beside a file: frames, digests, manifest, settings.
OVERHEAD_BYTES = 32_000


@pytest.mark.parametrize("at", [0.02, 0.13, 0.31, 0.5, 0.77, 0.97])
def test_a_cut_download_resumes_and_sends_at_most_one_chunk_again(site: Site, at: float) -> None:
    site.publish(NEW)
    size_bytes = len(NEW[KIND])
    with Proxy(site.port, cuts=[int(at * size_bytes)]) as proxy:
        result = get(proxy.port, site.store)
    assert site.in_use() == NEW[KIND]
    assert result.downloaded_bytes == size_bytes
    assert len(proxy.passed) == 2
    assert sum(proxy.passed) <= size_bytes + CHUNK_BYTES + OVERHEAD_BYTES


def test_a_link_that_is_cut_again_and_again_still_gets_there(site: Site) -> None:
    site.publish(NEW)
    cuts = [2 * CHUNK_BYTES] * 12
    with Proxy(site.port, cuts) as proxy:
        get(proxy.port, site.store)
    assert site.in_use() == NEW[KIND]
    resent = sum(proxy.passed) - len(NEW[KIND])
    assert resent <= (len(proxy.passed) - 1) * CHUNK_BYTES + OVERHEAD_BYTES


def test_a_process_killed_in_the_middle_resumes_where_it_was(site: Site) -> None:
    site.publish(NEW)
    part = site.store.part(sha256(NEW[KIND]))
    part.parent.mkdir(parents=True)
    part.write_bytes(NEW[KIND][: 5 * CHUNK_BYTES + 99])
    with Proxy(site.port) as proxy:
        result = get(proxy.port, site.store)
    assert result.resumed_bytes == 5 * CHUNK_BYTES
    assert result.downloaded_bytes == len(NEW[KIND]) - 5 * CHUNK_BYTES
    assert sum(proxy.passed) <= result.downloaded_bytes + OVERHEAD_BYTES
    assert site.in_use() == NEW[KIND]


@pytest.mark.parametrize("length", [CHUNK_BYTES, len(NEW[KIND]), len(NEW[KIND]) + 5])
def test_a_wrong_rest_of_an_earlier_download_is_thrown_away(site: Site, length: int) -> None:
    site.publish(NEW)
    part = site.store.part(sha256(NEW[KIND]))
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * length)
    assert site.get().downloaded_bytes >= len(NEW[KIND])
    assert site.in_use() == NEW[KIND]


def test_a_new_version_in_the_middle_of_a_download_starts_cleanly(site: Site) -> None:
    site.publish(OLD)
    with Proxy(site.port, [2 * CHUNK_BYTES] + [0] * 9) as proxy, pytest.raises(DepotError):
        get(proxy.port, site.store)
    assert site.store.part(sha256(OLD[KIND])).stat().st_size > 0
    site.publish(NEW)
    site.get()
    assert site.in_use() == NEW[KIND]
    assert not list(site.store.folder.glob("parts/*"))


def test_another_machine_is_reached_with_tls_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--ca FILE"):
        Address("192.0.2.1:9443", token="token")
    Address("192.0.2.1:9443", insecure=True)
    Address("192.0.2.1:9443", tls_ca=tmp_path / "ca.pem")


def test_a_depot_that_is_not_there_is_reported_after_a_bounded_time(site: Site) -> None:
    start = time.monotonic()
    with pytest.raises(DepotError, match=r"unreachable: depot 127\.0\.0\.1:1"):
        get(1, site.store)
    assert time.monotonic() - start < 10


def test_a_refusal_is_not_tried_again(site: Site) -> None:
    site.publish(OLD)
    other = DeviceStore(site.store.root, "phone")
    with Proxy(site.port) as proxy, pytest.raises(DepotError, match=r"unknown_class.*board"):
        get(proxy.port, other)
    assert len(proxy.passed) == 1


def test_a_wrong_token_is_reported(site: Site) -> None:
    site.publish(OLD)
    running = serve_depot(site.registry, "127.0.0.1:0", token="right")
    for token in (None, "wrong"):
        with pytest.raises(DepotError, match="unauthenticated"):
            get(running.port, site.store, token=token)
    assert get(running.port, site.store, token="right").activated
    running.stop(0)


def test_a_pull_over_tls(site: Site, tmp_path: Path) -> None:
    site.publish(OLD)
    files = certificate(tmp_path)
    running = serve_depot(site.registry, "127.0.0.1:0", files, "token")
    address = Address(f"localhost:{running.port}", files.certificate, "token")
    assert pull(address, site.store, None, QUICK, passes, first).activated
    running.stop(0)
