"""Clients who leave at any moment: each pays for what was generated, exactly.

TEST_ABORTS=20000 leaves so many times; TEST_ABORTS_SEED chooses other moments.
"""

import asyncio
import json
import os
import socket
import struct
from collections import Counter
from random import Random

from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage, eventually, says
from tests.races.fleet import check_everything, fleet

from sublet.models.replica.usage import Book

ABORTS = int(os.environ.get("TEST_ABORTS", "2000"))
SEED = int(os.environ.get("TEST_ABORTS_SEED", "1"))
AT_ONCE = 48
TENANTS = 4
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST, at once
WAYS = ("in the body", "at once", "before the first token", "in between", "in the stream")


def request(dice: Random, key: str, *, stream: bool, first_ms: int) -> bytes:
    script = says(tokens=dice.randint(1, 120), first_ms=first_ms, delay_ms=dice.randint(1, 5))
    body = json.dumps({"model": MODEL, "messages": script, "stream": stream}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
        + key.encode()
        + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
        + body
    )


async def leave(dice: Random, port: int, key: str) -> str:
    """Ask, and be gone at a random moment; say in which way."""
    way = dice.choices(WAYS, weights=(1, 2, 3, 8, 6))[0]
    slow = way == "before the first token"
    asked = request(dice, key, stream=dice.random() < 0.6, first_ms=5000 if slow else 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if way == "in the body":
            asked = asked[: dice.randrange(1, len(asked))]
        writer.write(asked)
        await writer.drain()
        if way == "in the stream":
            # Also one that is not streamed comes to its end here, or is left by the clock.
            try:
                async with asyncio.timeout(dice.uniform(0.05, 1.5)):
                    await reader.read(1)
                    for _ in range(dice.randrange(60)):
                        await reader.read(200)
            except TimeoutError:
                pass
        elif way in {"in between", "before the first token"}:
            await asyncio.sleep(dice.uniform(0, 0.6))
    finally:
        if dice.random() < 0.5:
            own: socket.socket = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        else:
            writer.close()
    return way


async def leave_often(dice: Random, port: int, keys: list[str]) -> Counter[str]:
    left = iter(range(ABORTS))
    ways: Counter[str] = Counter()

    async def work() -> None:
        for number in left:
            ways[await leave(Random(dice.random()), port, keys[number % len(keys)])] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return ways


async def leave_when_served(dice: Random, port: int, key: str) -> None:
    """Leave too late: all of the answer was sent when its first byte came, on any machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(dice, key, stream=False, first_ms=0))
    assert await reader.read(1)
    writer.transport.abort()


def test_whoever_leaves_whenever_pays_for_what_was_generated(own_stage: Stage) -> None:
    stage = own_stage
    stage.fake.book = Book(keep=2 * ABORTS)
    dice = Random(SEED)
    with fleet(stage, "test") as gateways:
        gateway = gateways.gateways["test"]
        payers = [stage.tenant(10**12) for _ in range(TENANTS)]
        port = int(gateway.url.rsplit(":", 1)[1])
        ways = asyncio.run(leave_often(dice, port, [key for _, key in payers]))
        asyncio.run(leave_when_served(dice, port, payers[0][1]))
        eventually(lambda: stage.fake.running == 0)
        check_everything(stage)

        outcomes: Counter[str] = Counter()
        charged: set[str] = set()
        for tenant, _ in payers:
            usages = stage.usages(tenant)
            for usage in usages:
                generated = stage.fake.book.get(usage["request_id"]).usage
                assert usage["output_tokens"] == generated.output_tokens
                assert usage["input_tokens"] == generated.input_tokens == 1
                assert usage["delivered_tokens"] <= usage["output_tokens"]
                outcomes[usage["outcome"]] += 1
                charged.add(usage["request_id"])
            wallet = stage.wallet(tenant)
            due = sum(INPUT + usage["output_tokens"] * OUTPUT for usage in usages)
            assert (wallet.debits_posted, wallet.debits_pending) == (due, 0)
        # And nothing was generated for nothing.
        records = stage.fake.book._records
        assert {id_ for id_, record in records.items() if record.usage.output_tokens} <= charged
    print(dict(ways), dict(outcomes), "generated:", stage.generated())
    assert set(ways) == set(WAYS) and ways.total() == ABORTS
    assert outcomes["aborted"] > ABORTS / 3
    assert set(outcomes) == {"aborted", "completed"}
