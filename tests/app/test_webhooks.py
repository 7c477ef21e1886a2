"""A webhook is told of a notice: signed, again with bounds, and nothing of ours is reached by it."""

import hmac
import json
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from tests.core.databases import fresh
from tests.simulation.shop import NOON, POOL, SECOND, World

from sublet.app.webhooks import Webhooks, secret_of
from sublet.core.certificates import ensure
from sublet.core.clock import SystemClock
from sublet.core.errors import Invalid
from sublet.engine.port import Workload
from sublet.engine.simulated import Fate, fate_of
from sublet.leases import admission, service, store, webhooks
from sublet.leases.lease import EndReason, LeaseId
from sublet.leases.store import Spec
from sublet.leases.webhook import again_at, check_url, is_public
from sublet.market.price import Tier

KEY = "a key"


class Server:
    """Listens on loopback, and answers as it is told."""

    def __init__(self, folder: Path) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answers = [200]
        certificates = ensure(folder, hosts=["localhost"], now=SystemClock().now())
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, dict(self.headers), body))
                self.send_response(outer.answers.pop(0) if outer.answers else 200)
                self.send_header("Location", "https://localhost/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        shown.load_cert_chain(certificates.server, certificates.server_key)
        self._http.socket = shown.wrap_socket(self._http.socket, server_side=True)
        self.tls = ssl.create_default_context(cafile=str(certificates.ca))
        self.url = f"https://localhost:{self._http.server_address[1]}/notices?of=mine"
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.close()


@pytest.fixture
def world(postgres_url: str, template: str) -> Iterator[World]:
    with fresh(postgres_url, template) as database:
        made = World(database)
        made.engine._fate = _slow
        yield made


def _slow(workload: Workload) -> Fate:
    """Return a fate that takes the whole notice."""
    fate = fate_of(workload)
    return Fate(lasts=fate.lasts, obeys_after=None)


class Sender:
    def __init__(self, world: World, server: Server, **more: Any) -> None:
        allowed = more or {"allowed": lambda _: True}
        self.webhooks = Webhooks(
            world.db, clock=world.clock, signing_key=KEY, tls=server.tls, **allowed
        )
        self.world = world

    def send(self) -> int:
        with ThreadPoolExecutor(2) as threads:
            return self.webhooks.send_due(threads)

    def outcome(self, lease: LeaseId) -> tuple[str | None, int, str | None]:
        with self.world.db.transaction() as tx:
            found = webhooks.find(tx, lease)
        assert found is not None
        return found["outcome"], found["attempts"], found["detail"]


def lease(world: World, url: str) -> LeaseId:
    request = service.Request(
        pool=POOL, gpus=1, tier=Tier.INTERRUPTIBLE, max_duration=timedelta(hours=1),
        spec=Spec(command=["serve"]), webhook=url,
    )  # fmt: skip
    with world.db.transaction() as tx:
        return admission.admit(tx, world.other, request, jobs=[], now=world.clock.now()).id


def give_notice(world: World, id_: LeaseId) -> None:
    with world.db.transaction() as tx:
        store.ask_release(tx, id_, EndReason.RECLAIMED)
    world.control.tick()


def test_a_tenant_is_told_once_and_can_tell_that_it_was_us(world: World, server: Server) -> None:
    sender = Sender(world, server)
    id_ = lease(world, server.url)
    world.until(NOON + 2 * SECOND)
    assert sender.send() == 0, "there is no notice yet"
    give_notice(world, id_)
    assert (sender.send(), sender.send()) == (1, 0)
    ((path, headers, body),) = server.got
    assert path == "/notices?of=mine"
    said = json.loads(body)
    assert (said["lease_id"], said["reason"]) == (str(id_), "reclaimed")
    assert said["stops_at"] == (world.clock.now() + 10 * SECOND).isoformat()
    at, _, signed = headers["Sublet-Signature"].removeprefix("t=").partition(",v1=")
    secret = secret_of(KEY, id_).encode()
    assert signed == hmac.new(secret, f"{at}.".encode() + body, sha256).hexdigest()
    assert sender.outcome(id_) == ("delivered", 1, "delivered")


def test_what_fails_is_sent_again_until_the_notice_is_over(world: World, server: Server) -> None:
    sender = Sender(world, server)
    id_ = lease(world, server.url)
    world.until(NOON + 2 * SECOND)
    give_notice(world, id_)
    server.answers = [500, 302, 503, 500, 500]
    for after, attempts in ((0, 1), (1, 2), (2, 3), (4, 4)):
        world.until(world.clock.now() + after * SECOND)
        assert sender.send() == 1
        assert sender.outcome(id_)[1] == attempts
    assert sender.outcome(id_) == ("given_up", 4, "it answered 500")
    assert [path for path, _, _ in server.got] == ["/notices?of=mine"] * 4, (
        "no redirect is followed"
    )


def test_nothing_of_ours_is_reached_by_a_tenants_address(world: World, server: Server) -> None:
    sender = Sender(world, server, allowed=is_public)
    id_ = lease(world, server.url)
    world.until(NOON + 2 * SECOND)
    give_notice(world, id_)
    assert sender.send() == 1
    outcome, _, detail = sender.outcome(id_)
    assert outcome is None and detail is not None and "is no public address" in detail
    assert server.got == []


def test_a_lease_that_ends_without_a_notice_calls_nobody(world: World, server: Server) -> None:
    sender = Sender(world, server)
    id_ = lease(world, server.url)
    with world.db.transaction() as tx:
        store.ask_release(tx, id_, EndReason.RELEASED)
    world.until(NOON + 30 * SECOND)
    assert sender.send() == 0
    assert sender.outcome(id_) == ("given_up", 0, "the lease is over")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.1", "::1",
     "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "224.0.0.1",
     "2002:7f00:1::", "100.64.0.1", "::"],
)  # fmt: skip
def test_what_is_not_on_the_public_internet_is_not_called(address: str) -> None:
    assert not is_public(ip_address(address))


def test_what_is_on_the_public_internet_may_be() -> None:
    assert is_public(ip_address("8.8.8.8")) and is_public(ip_address("2606:4700::1111"))


@pytest.mark.parametrize(
    "url",
    ["http://example.com/", "https://", "https://user:pw@example.com/", "https://x/#y", "ftp://x/",
     "https://exa mple.com/", "https://example.com:99999/", "https://example.com:0/", "nothing",
     "https://example.com/\r\nHost: other", "https://[::1/", "https://e\u00e9.com/"],
)  # fmt: skip
def test_what_is_no_plain_https_address_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="webhook"):
        check_url(url)


def test_it_is_sent_again_after_twice_as_long_and_never_too_late() -> None:
    late = NOON + timedelta(hours=9)
    waits = [again_at(number, now=NOON, stops_at=late) for number in range(1, 9)]
    assert waits[:-1] == [NOON + SECOND * 2**number for number in range(7)]
    assert waits[-1] is None
    assert again_at(1, now=NOON, stops_at=NOON + SECOND) is None


def test_of_one_tenant_only_a_few_are_sent_at_once(world: World) -> None:
    ids = [lease(world, "https://example.com/") for _ in range(6)]
    world.until(NOON + 2 * SECOND)
    for id_ in ids:
        give_notice(world, id_)
    with world.db.transaction() as tx:
        now = world.clock.now()
        until = now + 30 * SECOND
        first = webhooks.claim(tx, now=now, until=until, limit=16, each=4)
        second = webhooks.claim(tx, now=now, until=until, limit=16, each=4)
    assert (len(first), len(second)) == (4, 2)
