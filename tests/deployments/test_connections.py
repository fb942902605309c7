"""Many requests to providers at once: each pool of connections stays small, and those that are free are used again."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from deployments.egress.connections import _IN_A_POOL, provider_transport
from tests.deployments.outside import free_port

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_a_rush_fills_further_pools_and_leaves_them_empty():
    accepted, rush = [], asyncio.Barrier(2 * _IN_A_POOL + 6)

    async def provide(reader, writer):
        accepted.append(writer)
        while (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
            if b"/rush" in head:
                await rush.wait()
            writer.write(ANSWER)

    server = await asyncio.start_server(provide, "127.0.0.1", 0, backlog=200)
    url, transport = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", provider_transport(False)
    async with server, asyncio.timeout(60), httpx.AsyncClient(transport=transport, trust_env=False) as client:
        for _ in range(3):
            await client.get(f"{url}/one")
        assert len(accepted) == len(transport._pools) == 1
        answers = await asyncio.gather(*(client.get(f"{url}/rush") for _ in range(rush.parties)))
        assert {answer.text for answer in answers} == {"ok"} and len(accepted) == rush.parties
        assert [pool.busy for pool in transport._pools] == [0, 0, 0]
        await client.get(f"{url}/one")
        assert len(accepted) == rush.parties
        for writer in accepted:
            writer.close()


async def test_a_request_that_fails_or_is_given_up_leaves_its_pool():
    async def never(reader, writer):
        await reader.read()
        writer.close()

    server, transport = await asyncio.start_server(never, "127.0.0.1", 0), provider_transport(False)
    async with server, asyncio.timeout(60), httpx.AsyncClient(transport=transport, trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{free_port()}")
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.05)
        given_up = asyncio.create_task(client.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        await asyncio.sleep(0)
        assert transport._pools[0].busy == 1
        given_up.cancel()
        await asyncio.wait([given_up])
    assert [pool.busy for pool in transport._pools] == [0]
