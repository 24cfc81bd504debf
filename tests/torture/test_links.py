"""The proxies of the torture: what they let through, what they keep back, and whom they reach."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gateway.torture.links import Link, Switchboard

PATIENCE_S = 5.0


@contextmanager
def echo_server(path: Path, mark: bytes = b"") -> Iterator[list[bytes]]:
    """Answers each message with mark and the message; the messages that it saw are yielded."""
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(1000):
                seen.append(data)
                connection.sendall(mark + data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield seen
        listening.shutdown(socket.SHUT_RDWR)


class World:
    def __init__(self, link: Link, seen: list[bytes]) -> None:
        self.link = link
        self.seen = seen

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE_S)
        client.connect(str(self.link.path))
        return client


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    target = tmp_path / "server"
    with echo_server(target) as seen, Switchboard() as switchboard:
        yield World(switchboard.link(tmp_path / "link", lambda: target), seen)


def says_nothing(client: socket.socket) -> bool:
    client.settimeout(0.1)
    try:
        client.recv(1000)
    except TimeoutError:
        return True
    finally:
        client.settimeout(PATIENCE_S)
    return False


def is_over(client: socket.socket) -> bool:
    try:
        return client.recv(1000) == b""
    except ConnectionError:
        return True


def test_bytes_go_both_ways(world: World) -> None:
    with world.connect() as client:
        client.sendall(b"hello")
        assert client.recv(1000) == b"hello"


def test_a_cut_ends_every_connection_and_new_ones_work(world: World) -> None:
    with world.connect() as client:
        client.sendall(b"hello")
        assert client.recv(1000) == b"hello"
        world.link.cut()
        assert is_over(client)
    with world.connect() as client:
        client.sendall(b"again")
        assert client.recv(1000) == b"again"


def test_a_reply_is_cut_in_the_middle_once(world: World) -> None:
    world.link.cut_next_reply()
    with world.connect() as client:
        client.sendall(b"12345678")
        assert client.recv(1000) == b"1234"
        assert is_over(client)
    with world.connect() as client:
        client.sendall(b"12345678")
        assert client.recv(1000) == b"12345678"


def test_stalled_replies_come_later(world: World) -> None:
    with world.connect() as client:
        world.link.stall_replies()
        client.sendall(b"hello")
        assert says_nothing(client)
        assert world.seen == [b"hello"]
        world.link.flow()
        assert client.recv(1000) == b"hello"


def test_stalled_requests_come_later(world: World) -> None:
    with world.connect() as client:
        world.link.stall_requests()
        client.sendall(b"hello")
        assert says_nothing(client)
        assert world.seen == []
        world.link.flow()
        assert client.recv(1000) == b"hello"


def test_swallowed_replies_never_come(world: World) -> None:
    with world.connect() as client:
        world.link.swallow_replies()
        client.sendall(b"hello")
        assert says_nothing(client)
        assert world.seen == [b"hello"]
        world.link.flow()
        assert is_over(client)


def test_another_target_is_for_new_connections_until_the_old_are_cut(tmp_path: Path) -> None:
    target = [tmp_path / "one"]
    with echo_server(tmp_path / "one"), echo_server(tmp_path / "two", b"2:"), Switchboard() as switchboard:
        link = switchboard.link(tmp_path / "link", lambda: target[0])
        with World(link, []).connect() as old:
            old.sendall(b"a")
            assert old.recv(1000) == b"a"
            target[0] = tmp_path / "two"
            with World(link, []).connect() as new:
                new.sendall(b"b")
                assert new.recv(1000) == b"2:b"
            old.sendall(b"c")
            assert old.recv(1000) == b"c"


def test_nobody_there_ends_the_connection(tmp_path: Path) -> None:
    with Switchboard() as switchboard:
        link = switchboard.link(tmp_path / "link", lambda: tmp_path / "nobody")
        with World(link, []).connect() as client:
            assert is_over(client)
