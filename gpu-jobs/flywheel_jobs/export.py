"""Job `export`: a trained ensemble as a bundle, ONNX and safetensors for each member, checked against PyTorch on real images.

Equal inputs give equal bytes: nothing of time, machine or path goes into a file. Every file is an object, and
`bundle.json`, an object too, names them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .backbones import Bytes, create, feature_net, onnx_session, to_onnx, weights_digest
from .cli import environment
from .context import JobContext
from .errors import BadInput, EmptySplit, ParityLost
from .features import decode
from .heads import calibrate, vote
from .metrics import Array, sigmoid
from .objects import sha256
from .spec import ImageRow, read_manifest, validate
from .trained import Trained, TrainedMember

if TYPE_CHECKING:
    from torch import nn

BATCH = 16


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Writes the bundle. Raises ParityLost when ONNX and PyTorch differ by more than the tolerance, BadInput when weights have changed."""
    import torch

    torch.set_num_threads(ctx.threads)
    trained = Trained.load(ctx.objects, job_input["trained"])
    images = _parity_images(ctx, job_input)
    count = len(trained.members)
    members: list[dict[str, Any]] = []
    onnx_votes: list[Array] = []
    torch_votes: list[Array] = []
    for number, member in enumerate(trained.members):
        found = weights_digest(member.ref, ctx)
        if found != member.weights_digest:
            raise BadInput(
                f"member {member.name} was trained on weights {member.weights_digest}, but {member.ref.weights} now gives {found}. "
                "Nothing was written. Restore those weights, or train again."
            )
        net = member_net(member, ctx)
        graph = to_onnx(net, member.preprocess.size, ("logit",))
        tensors = _tensors(net)
        pixels = _pixels(ctx, images, member)
        with torch.inference_mode():
            torch_votes.append(_run_torch(net, member, pixels))
        onnx_votes.append(_run_onnx(graph, member, pixels, ctx.threads))
        members.append(
            {
                "name": member.name,
                "backbone": member.ref.backbone,
                "features": member.features,
                "weight": member.weight,
                "onnx": _file(ctx, f"{member.name}.onnx", graph),
                "safetensors": _file(ctx, f"{member.name}.safetensors", tensors),
                "preprocess": member.preprocess.to_json(),
                "parameters": sum(parameter.numel() for parameter in net.parameters()),
            }
        )
        ctx.progress.step("export", number + 1, count, "members", member.name)
    largest = parity(onnx_votes, torch_votes, trained)
    if not largest <= float(job_input["parityTolerance"]):
        raise ParityLost(
            f"ONNX and PyTorch differ by {largest:.2e} in probability on {len(images)} images, "
            f"more than {job_input['parityTolerance']:.2e} allows. "
            "No bundle was named; the trained weights are kept. Do not serve this model: report the backbone and the versions."
        )
    bundle = {
        "format": "streetvision-bundle/1",
        "name": job_input["name"],
        "members": members,
        "calibration": trained.calibration,
        "training": {
            "snapshot": job_input["snapshot"],
            "trained": job_input["trained"],
            "parent": job_input["parent"],
            "seed": int(job_input["seed"]),
        },
        "metrics": trained.metrics,
        "parity": {"n": len(images), "maxAbsDp": largest},
        "environment": environment(),
    }
    validate("bundle", bundle, "the bundle")
    digest = ctx.objects.put_json(bundle)
    total = sum(int(member[part]["bytes"]) for member in members for part in ("onnx", "safetensors")) + len(ctx.objects.get(digest))
    return {"bundle": digest, "bytes": total, "parity": bundle["parity"]}


def member_net(member: TrainedMember, ctx: JobContext) -> nn.Module:
    """Backbone and head in one: [n, 3, size, size] to logits [n]. Layers that the features do not need are left out."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = feature_net(create(member.ref, ctx.objects), (member.features,), trim=True)
            self.head = nn.Linear(len(member.head.weight), 1)
            with torch.no_grad():
                self.head.weight.copy_(torch.from_numpy(member.head.weight)[None])
                self.head.bias.fill_(member.head.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.backbone(x)[0]).flatten()
            return out

    return Net().eval()


def parity(onnx_logits: list[Array], torch_logits: list[Array], trained: Trained) -> float:
    """Largest difference of probability over the images, of every member and of the calibrated ensemble. NaN counts as 1."""
    pairs = [(sigmoid(a), sigmoid(b)) for a, b in zip(onnx_logits, torch_logits, strict=True)]
    weights = [member.weight for member in trained.members]
    scale = (float(trained.calibration["a"]), float(trained.calibration["b"]))
    pairs.append((calibrate(vote([a for a, _ in pairs], weights), *scale), calibrate(vote([b for _, b in pairs], weights), *scale)))
    largest = max(float(np.max(np.abs(a - b))) for a, b in pairs)
    return largest if np.isfinite(largest) else 1.0


def _parity_images(ctx: JobContext, job_input: dict[str, Any]) -> list[ImageRow]:
    """Images of the check, drawn by seed. Test images may serve: nothing is learned from a comparison of two programs."""
    rows = sorted(
        read_manifest(ctx.objects, job_input["parity"], "manifest of the parity check", refuse_test=False), key=lambda r: r.digest
    )
    if not rows:
        raise EmptySplit("the manifest of the parity check is empty: a bundle is only written when it was compared on images.")
    chosen = np.random.default_rng(int(job_input["seed"])).permutation(len(rows))[: int(job_input["parityImages"])]
    return [rows[index] for index in sorted(chosen)]


def _pixels(ctx: JobContext, images: list[ImageRow], member: TrainedMember) -> Bytes:
    return np.stack([member.preprocess.pixels(decode(ctx.objects.get(row.digest), row.digest)) for row in images])


def _run_torch(net: nn.Module, member: TrainedMember, pixels: Bytes) -> Array:
    import torch

    fast = net.to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(pixels), BATCH):
        x = torch.from_numpy(member.preprocess.tensor(pixels[start : start + BATCH])).to(memory_format=torch.channels_last)
        parts.append(fast(x).double().numpy())
    return np.concatenate(parts)


def _run_onnx(graph: bytes, member: TrainedMember, pixels: Bytes, threads: int) -> Array:
    session = onnx_session(graph, threads)
    # one by one, as the miner asks: a batch and its single images must agree as well
    return np.concatenate([session.run(["logit"], {"input": member.preprocess.tensor(one[None])})[0] for one in pixels]).astype(np.float64)


def _tensors(net: nn.Module) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().clone().contiguous() for name, tensor in sorted(net.state_dict().items())})


def _file(ctx: JobContext, path: str, data: bytes) -> dict[str, Any]:
    ctx.objects.put(data)
    return {"path": path, "sha256": sha256(data), "bytes": len(data)}
