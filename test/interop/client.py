"""The real client: bittensor's own Dendrite asks the miner, and requests it signed are altered and sent again.

Reads one JSON object from standard input: {url: "host:port", miner, mnemonics: {role: words}, images: {name: base64}}.
Prints one JSON object: what came back, by name.
"""

import asyncio
import json
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "bench", "miner"))
given = json.load(sys.stdin)

import aiohttp  # noqa: E402
from subnet import AxonInfo, ExtendedImageSynapse, ImageSynapse, Wallet, axon_at, bt  # noqa: E402

HOST, PORT = given["url"].split(":")
folder = tempfile.TemporaryDirectory(prefix="interop-wallets-")


def wallet(role: str) -> Wallet:
    made = Wallet(name=f"cold-{role}", hotkey=role, path=folder.name)
    made.regenerate_coldkey(mnemonic=given["mnemonics"][role], use_password=False, overwrite=True, suppress=True)
    made.regenerate_hotkey(mnemonic=given["mnemonics"][role], use_password=False, overwrite=True, suppress=True)
    return made


def axon(hotkey: str) -> AxonInfo:
    return axon_at(HOST, int(PORT), hotkey)


TARGET = axon(given["miner"])
GOOD = next(iter(given["images"].values()))


async def ask(dendrite: bt.Dendrite, synapse: bt.Synapse) -> dict:
    answer = (await dendrite(axons=[TARGET], synapse=synapse, deserialize=False, timeout=9.0))[0]
    return {
        "status": answer.dendrite.status_code,
        "message": answer.dendrite.status_message,
        "axon": answer.axon.status_code,
        "success": answer.is_success,
        "prediction": getattr(answer, "prediction", None),
        "process_time": answer.axon.process_time,
    }


def forge(role: str, change: dict, resign: bool = False, target: AxonInfo = TARGET) -> tuple[dict, bytes]:
    """A request signed by bittensor's own code, with headers changed; None takes one away."""
    dendrite = bt.Dendrite(wallet=WALLETS[role])
    synapse = dendrite.preprocess_synapse_for_request(target, ImageSynapse(image=GOOD), 9.0)
    headers = dict(synapse.to_headers())
    for name, value in change.items():
        headers.pop(name, None)
        if value is not None:
            headers[name] = str(value)
    if resign:
        names = ["bt_header_dendrite_nonce", "bt_header_dendrite_hotkey", "bt_header_axon_hotkey", "bt_header_dendrite_uuid", "computed_body_hash"]
        message = ".".join(headers[name] for name in names)
        headers["bt_header_dendrite_signature"] = "0x" + WALLETS[role].hotkey.sign(message).hex()
    return {"Content-Type": "application/json", **headers}, json.dumps(synapse.model_dump()).encode()


async def send(session: aiohttp.ClientSession, request: tuple[dict, bytes]) -> int:
    async with session.post(f"http://{HOST}:{PORT}/ImageSynapse", headers=request[0], data=request[1]) as answer:
        await answer.read()
        return answer.status


WALLETS = {role: wallet(role) for role in given["mnemonics"]}
NONCE, VERSION, SIGNATURE = "bt_header_dendrite_nonce", "bt_header_dendrite_version", "bt_header_dendrite_signature"


async def main() -> dict:
    out: dict = {"bittensor": bt.__version__}
    async with bt.Dendrite(wallet=WALLETS["validator"]) as dendrite:
        out["images"] = {name: await ask(dendrite, ImageSynapse(image=image)) for name, image in given["images"].items()}
        out["extended"] = await ask(dendrite, ExtendedImageSynapse(image=GOOD))
        out["ping"] = await ask(dendrite, bt.Synapse())
        out["not an image"] = await ask(dendrite, ImageSynapse(image="AAAA"))
        together = await asyncio.gather(*(ask(dendrite, ImageSynapse(image=GOOD)) for _ in range(40)))
        out["together"] = [answer["status"] for answer in together]
        # An idle connection: the client itself drops it after 15 s; the reference axon drops it after 5 s, under its feet.
        await asyncio.sleep(5.2)
        out["after an idle time"] = await ask(dendrite, ImageSynapse(image=GOOD))
    for role in ("nonvalidator", "stranger"):
        async with bt.Dendrite(wallet=WALLETS[role]) as dendrite:
            out[role] = await ask(dendrite, ImageSynapse(image=GOOD))
            out[f"{role} ping"] = await ask(dendrite, bt.Synapse())
    now = time.time_ns()
    minute = 60_000_000_000
    forged = {
        "untouched": forge("validator", {}),
        "missing signature": forge("validator", {SIGNATURE: None}),
        "empty signature": forge("validator", {SIGNATURE: ""}),
        "old nonce": forge("validator", {NONCE: now - minute}, resign=True),
        "old nonce, long time-out": forge("validator", {NONCE: now - minute, "timeout": "1000000.0"}, resign=True),
        "old nonce, old version": forge("validator", {NONCE: now - minute, VERSION: "7001000"}, resign=True),
        "future nonce": forge("validator", {NONCE: now + minute}, resign=True),
        "old version": forge("validator", {VERSION: "7001000"}),
        "for another miner": forge("validator", {}, target=axon(WALLETS["stranger"].hotkey.ss58_address)),
        "signed by another": forge("stranger", {"bt_header_dendrite_hotkey": WALLETS["validator"].hotkey.ss58_address}, resign=True),
        "another body hash": forge("validator", {"computed_body_hash": "00" * 32}, resign=True),
    }
    async with aiohttp.ClientSession() as session:
        out["forged"] = {name: await send(session, request) for name, request in forged.items()}
        out["forged"]["replayed"] = await send(session, forged["untouched"])
        older, younger = forge("validator", {}), forge("validator", {})
        out["out of order"] = [await send(session, younger), await send(session, older)]
    return out


print(json.dumps(asyncio.run(main())))
folder.cleanup()
