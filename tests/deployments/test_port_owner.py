"""Whose socket listens at a port, as the kernel itself tells it."""

import os
import socket

import pytest

from deployments.port_owner import listening_users


@pytest.mark.parametrize(
    ("bound", "asked", "found"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("::1", "::1", True),
        ("::", "127.0.0.1", True),
        ("::1", "127.0.0.1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
    ],
)
def test_who_listens_at_an_address_or_at_all_of_them_is_found(bound, asked, found):
    with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET) as listener:
        try:
            listener.bind((bound, 0))
        except OSError:
            pytest.skip("this machine has no such address")
        port = listener.getsockname()[1]
        assert listening_users(asked, port) == set()
        listener.listen()
        assert listening_users(asked, port) == ({os.geteuid()} if found else set())
