"""The peer: bittensor's own Axon, as the subnet's miner uses it, with a forward that does nothing or runs a detector.

--memo keeps the schema that the package otherwise rebuilds for every header: how fast Python can be without changing what
it does. --model runs the usual detector in the forward: Pillow, numpy, onnxruntime over the same files as our miner.
Nothing of the chain is touched; verification (nonce and sr25519) really runs.
"""

import argparse
import base64
import io
import json
import os
import tempfile
import threading
from typing import Tuple

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--validator", required=True, help="SS58 address that has a permit")
parser.add_argument("--memo", action="store_true")
parser.add_argument("--model", default="", help="folder with bundle.json")
parser.add_argument("--threads", type=int, default=0)
args = parser.parse_args()

from subnet import ImageSynapse, Wallet, bt, memoise  # noqa: E402

if args.memo:
    memoise()


def detector(folder: str):
    """The usual Python miner: Pillow, numpy, onnxruntime, all in the forward."""
    import numpy as np
    import onnxruntime as ort
    from PIL import Image

    with open(os.path.join(folder, "bundle.json"), encoding="utf8") as file:
        bundle = json.load(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    members = [
        (m["weight"], m["preprocess"], ort.InferenceSession(os.path.join(folder, m["onnx"]["path"]), options, providers=["CPUExecutionProvider"]))
        for m in bundle["members"]
    ]

    def predict(encoded: str) -> float:
        image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        total = 0.0
        for weight, pre, session in members:
            size = pre["size"]
            pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC if pre["interpolation"] == "bicubic" else Image.Resampling.BILINEAR), np.float32)
            scaled = (pixels / 255 - np.asarray(pre["mean"], np.float32)) / np.asarray(pre["std"], np.float32)
            logit = session.run(["logit"], {"input": scaled.transpose(2, 0, 1)[None]})[0][0]
            total += weight / (1 + float(np.exp(-logit)))
        return total

    return predict


predict = detector(args.model) if args.model else None


async def forward(synapse: ImageSynapse) -> ImageSynapse:
    synapse.prediction = predict(synapse.image) if predict else 0.5
    return synapse


async def blacklist(synapse: ImageSynapse) -> Tuple[bool, str]:  # bittensor compares this very annotation
    if synapse.dendrite is None or synapse.dendrite.hotkey != args.validator:
        return True, "Unrecognized hotkey"
    return False, "Hotkey recognized!"


async def priority(synapse: ImageSynapse) -> float:
    return 1000.0


def main() -> None:
    # A throw-away key of this run.
    wallet = Wallet(name="bench", hotkey="miner", path=tempfile.mkdtemp(prefix="bench-wallet-"))
    wallet.create_new_hotkey(use_password=False, overwrite=True, suppress=True)
    wallet.create_new_coldkey(use_password=False, overwrite=True, suppress=True)
    axon = bt.Axon(wallet=wallet, config=bt.Axon.config(), port=args.port, ip="127.0.0.1", external_ip="127.0.0.1", external_port=args.port)
    axon.attach(forward_fn=forward, blacklist_fn=blacklist, priority_fn=priority)
    axon.start()
    print(json.dumps({"ready": True, "hotkey": wallet.hotkey.ss58_address, "bittensor": bt.__version__}), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
