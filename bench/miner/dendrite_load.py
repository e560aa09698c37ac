"""Constant load by bittensor's own Dendrite, the client that validators use. Reads commands from standard input:
a line "stop" ends it; then one JSON line with the counts goes to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
import tempfile
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--axon", required=True, help="SS58 address of the miner")
parser.add_argument("--seed", required=True, help="hex seed of the validator's throw-away key")
parser.add_argument("--images", required=True, help="folder of JPEG files")
parser.add_argument("--rate", type=float, required=True, help="requests a second")
parser.add_argument("--timeout", type=float, default=9.0)
args = parser.parse_args()

from subnet import ImageSynapse, Wallet, axon_at, bt, memoise  # noqa: E402

# Else the client, not the miner, would be what is measured.
memoise()


async def main() -> None:
    wallet = Wallet(name="bench", hotkey="validator", path=tempfile.mkdtemp(prefix="bench-wallet-"))
    wallet.regenerate_hotkey(seed=args.seed, use_password=False, overwrite=True, suppress=True)
    images = []
    for name in sorted(os.listdir(args.images)):
        with open(os.path.join(args.images, name), "rb") as file:
            images.append(base64.b64encode(file.read()).decode())
    axon = axon_at("127.0.0.1", args.port, args.axon)
    dendrite = bt.Dendrite(wallet=wallet)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    statuses: dict[str, int] = {}
    lost = 0
    seconds: list[float] = []
    running: set[asyncio.Task[None]] = set()

    async def one(i: int) -> None:
        nonlocal lost
        began = time.perf_counter()
        made = await dendrite.call(axon, ImageSynapse(image=images[i % len(images)]), timeout=args.timeout, deserialize=False)
        seconds.append(time.perf_counter() - began)
        status = str(made.dendrite.status_code)
        statuses[status] = statuses.get(status, 0) + 1
        if not 0 <= made.prediction <= 1:
            lost += 1

    print(json.dumps({"ready": True}), flush=True)
    began = time.perf_counter()
    sent = 0
    while not stop.is_set():
        await asyncio.sleep(max(0.0, began + sent / args.rate - time.perf_counter()))
        task = asyncio.create_task(one(sent))
        running.add(task)
        task.add_done_callback(running.discard)
        sent += 1
    await asyncio.gather(*running)
    await dendrite.aclose_session()
    seconds.sort()
    quantile = lambda q: 1000 * seconds[min(len(seconds) - 1, int(q * len(seconds)))] if seconds else None  # noqa: E731
    over = sum(1 for s in seconds if s > args.timeout)
    print(
        json.dumps(
            {"client": f"bittensor {bt.__version__} Dendrite", "sent": sent, "statuses": statuses, "lost": lost, "overDeadline": over}
            | {"p50Ms": quantile(0.5), "p95Ms": quantile(0.95), "p99Ms": quantile(0.99), "maxMs": 1000 * seconds[-1] if seconds else None}
        ),
        flush=True,
    )


asyncio.run(main())
