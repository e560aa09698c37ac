"""bittensor's own package as the peers of subnet 72 use it: the clients and the axon that the miner is held against.

Import it after the command line was parsed: bittensor reads that, too, when it is imported. Patched is only what would ask the
internet for our address, and, where `memoise` is called, what makes Python slower than it need be.
"""

import os
import sys

os.environ.setdefault("BT_NO_PARSE_CLI_ARGS", "1")
os.environ.setdefault("NO_VERSION_CHECKING", "1")
sys.argv = sys.argv[:1]

import bittensor as bt  # noqa: E402
import pydantic  # noqa: E402
from bittensor.core.chain_data import AxonInfo  # noqa: E402
from bittensor.core.settings import version_as_int  # noqa: E402
from bittensor.utils import networking  # noqa: E402
from bittensor_wallet import Wallet  # noqa: E402

__all__ = ["AxonInfo", "ExtendedImageSynapse", "ImageSynapse", "Wallet", "axon_at", "bt", "memoise"]

bt.logging.off()
networking.get_external_ip = lambda: "203.0.113.7"


class ImageSynapse(bt.Synapse):
    """The wire shape of the subnet's own: natix/protocol.py."""

    testnet_label: int = -1
    image: str = pydantic.Field(default="", frozen=False)
    prediction: float = pydantic.Field(default=-1.0, frozen=False)

    def deserialize(self) -> float:
        return self.prediction


class ExtendedImageSynapse(ImageSynapse):
    """The class name that validators used before."""

    model_url: str = ""


def axon_at(host: str, port: int, hotkey: str) -> AxonInfo:
    """Where a miner is, as the metagraph would tell it."""
    return AxonInfo(version=version_as_int, ip=host, port=port, ip_type=4, hotkey=hotkey, coldkey=hotkey)


def memoise() -> None:
    """Keeps the list of fields that the package otherwise derives anew, from a rebuilt schema, for every header."""
    rebuild = bt.Synapse.get_required_fields
    known: dict[type, list[str]] = {}

    def get_required_fields(self: bt.Synapse) -> list[str]:
        kind = type(self)
        if kind not in known:
            known[kind] = rebuild(self)
        return known[kind]

    bt.Synapse.get_required_fields = get_required_fields
