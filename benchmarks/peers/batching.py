"""BentoML, Ray Serve and async-batcher before a device that takes ``a + b * n`` seconds, in virtual time.

Their own code runs unchanged on an event loop whose clock jumps to the next timer when nothing is ready; they read the
same clock where they ask for the time. So nothing depends on how busy this machine is.

Reads ``{"arrivals": {name: [seconds, ...]}, "a", "b", "max_size", "slo", "count_from"}`` and prints
``{peer: {name: {"in_time", "late", "shed"}}}`` of the arrivals after ``count_from``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

from async_batcher.batcher import AsyncBatcher
from bentoml._internal.marshal.dispatcher import CorkDispatcher
from ray import serve

START = time.time()


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything is ready to run, then jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


class Overloaded(Exception):
    """A peer turned an element away."""


Submit = Callable[[float], Awaitable[float]]


def device(workload: dict) -> Callable[[list], Awaitable[list]]:
    lock = asyncio.Lock()

    async def run(batch: list) -> list:
        async with lock:
            await asyncio.sleep(workload["a"] + workload["b"] * len(batch))
        return batch

    return run


def bentoml(workload: dict) -> Submit:
    cork = CorkDispatcher(
        round(workload["slo"] * 1000), workload["max_size"], fallback=lambda: None, get_batch_size=lambda _: 1
    )
    run = device(workload)

    async def answer(batch: list) -> list:
        return await run(list(batch))

    call = cork(answer)

    async def submit(item: float) -> float:
        result = await call(item)
        if result is None:
            raise Overloaded
        return result

    return submit


def ray_serve(wait: float) -> Callable[[dict], Submit]:
    def make(workload: dict) -> Submit:
        run = device(workload)

        @serve.batch(max_batch_size=workload["max_size"], batch_wait_timeout_s=wait)
        async def answer(batch: list) -> list:
            return await run(batch)

        return answer

    return make


# Ray Serve asks its replica whether a batch can be full at all; outside a cluster there is none to ask.
serve.get_replica_context = lambda: SimpleNamespace(
    _deployment_config=SimpleNamespace(max_ongoing_requests=sys.maxsize)
)


def async_batcher(workload: dict) -> Submit:
    run = device(workload)

    class Batcher(AsyncBatcher):
        async def process_batch(self, batch: list) -> list:
            return await run(batch)

    return Batcher(max_batch_size=workload["max_size"], max_queue_time=0.01).process


PEERS: dict[str, Callable[[dict], Submit]] = {
    "BentoML": bentoml,
    "Ray Serve, wait 10 ms": ray_serve(0.01),
    "Ray Serve, wait 0": ray_serve(0.0),
    "async-batcher": async_batcher,
}


async def play(make: Callable[[dict], Submit], workload: dict, arrivals: list[float]) -> Counter:
    loop, fates = asyncio.get_running_loop(), Counter()
    submit = make(workload)

    async def one(arrived: float) -> None:
        try:
            await submit(arrived)
            fate = "in_time" if loop.time() - arrived <= workload["slo"] + 1e-9 else "late"
        except Overloaded:
            fate = "shed"
        if arrived >= workload["count_from"]:
            fates[fate] += 1

    tasks = []
    for arrived in arrivals:
        await asyncio.sleep(arrived - loop.time())
        tasks.append(loop.create_task(one(arrived)))
    await asyncio.gather(*tasks)
    return fates


def main() -> None:
    logging.disable(logging.CRITICAL)  # the event loop tells of tasks that Ray Serve leaves behind
    workload = json.load(sys.stdin)
    results: dict[str, dict[str, Counter]] = {}
    for peer, make in PEERS.items():
        for name, arrivals in workload["arrivals"].items():
            loop = VirtualLoop()
            time.time = lambda loop=loop: START + loop.now  # the peers' own look at the clock
            asyncio.set_event_loop(loop)
            results.setdefault(peer, {})[name] = loop.run_until_complete(play(make, workload, arrivals))
            background = asyncio.all_tasks(loop)
            for task in background:
                task.cancel()
            loop.run_until_complete(asyncio.wait(background, timeout=1.0))
            loop.close()
            print(f"{peer}, {name}: {dict(results[peer][name])}", file=sys.stderr)
    json.dump(results, sys.stdout)


main()
