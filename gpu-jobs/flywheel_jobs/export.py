"""Job `export`: a trained ensemble as a bundle, ONNX and safetensors for each member, checked against PyTorch on real images.

In fp32, equal inputs give equal bytes: nothing of time, machine or path goes into a file. With smaller precisions the measured
times are part of the bundle and the choice depends on them. Every file is an object; `bundle.json`, an object too, names them all
and is written last, so that a bundle that is named is whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backbones import Bytes, Preprocess
from .cli import environment
from .context import JobContext
from .errors import BadInput, EmptySplit, LossAboveLimit, OneClass, ParityLost
from .features import challenge_view
from .heads import calibrate, vote
from .metrics import Array, Labels, sigmoid
from .nets import feature_net, onnx_model
from .objects import sha256
from .pictures import decode
from .quantise import Graph, Quantiser, batches_of, match, matched, opset, pack, ranked, to_fp16
from .spec import ImageRow, read_manifest, validate
from .tensorrt import CPU, CUDA, TENSORRT, TRTEXEC, open_session, provider_here
from .trained import Trained, TrainedMember
from .variants import Loss, Variant, above, by_nearness, loss, pick, refuse, time_sessions
from .weights import create, weights_digest

if TYPE_CHECKING:
    from torch import nn

BATCH = 16
CALIBRATION_BATCH = 8
SEARCH_IMAGES = 8
"""calibration images that a layer's cost in int8 is measured on"""
SEARCH_SECONDS = 180.0
KEPT = (0, 4, 8, 16)
"""so many of the costliest layers stay in float32 in the int8 graphs that are compared; engines of TensorRT, which take minutes to
build, are made of the first alone"""
LOSS_VIEWS = 2
"""challenge views of each image that a loss is measured on, beside the image itself: losses must hold on what validators send"""


@dataclass
class _Evidence:
    """Images that smaller precisions are calibrated on and judged by; read once, prepared once for each kind of input."""

    ctx: JobContext
    calibration: list[ImageRow]
    judged: list[ImageRow]
    _prepared: dict[tuple[Preprocess, bool], Bytes] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """Of the rows of `pixels(..., judged=True)`."""
        return np.repeat(np.array([row.label for row in self.judged], np.int64), 1 + LOSS_VIEWS)

    def pixels(self, preprocess: Preprocess, judged: bool) -> Bytes:
        """Of the judged images (itself and its views, one after the other), or of those for the calibration (the same in turns)."""
        key = (preprocess, judged)
        if key not in self._prepared:
            made = []
            for number, row in enumerate(self.judged if judged else self.calibration):
                picture = decode(self.ctx.objects.get(row.digest), row.digest)
                views = range(1 + LOSS_VIEWS) if judged else [number % (1 + LOSS_VIEWS)]
                made += [preprocess.pixels(picture if view == 0 else challenge_view(picture, row.digest, view)) for view in views]
                self.ctx.progress.check()
            self._prepared[key] = np.stack(made)
        return self._prepared[key]


@dataclass
class _Exported:
    """A member with all its variants."""

    member: TrainedMember
    tensors: bytes
    parameters: int
    variants: list[Variant]
    chosen: Variant
    judged: dict[str, Array]
    """logits of the judged images by precision"""


def run(ctx: JobContext, job_input: dict[str, Any]) -> dict[str, Any]:
    """Writes the bundle.

    Raises ParityLost when ONNX and PyTorch differ by more than the tolerance, LossAboveLimit when the precision asked for loses
    too much, BadInput when weights have changed, OneClass or EmptySplit when there is nothing to measure a loss on.
    """
    import torch

    torch.set_num_threads(ctx.threads)
    trained = Trained.load(ctx.objects, job_input["trained"])
    images = _parity_images(ctx, job_input)
    wish = str(job_input["precision"])
    provider = provider_here(job_input["tensorrt"])
    evidence = None if wish == "fp32" else _evidence(ctx, job_input)
    exported: list[_Exported] = []
    onnx_votes: list[Array] = []
    torch_votes: list[Array] = []
    for number, member in enumerate(trained.members):
        one, by_onnx, by_torch = _export(ctx, job_input, member, images, provider, evidence)
        exported.append(one)
        onnx_votes.append(by_onnx)
        torch_votes.append(by_torch)
        ctx.progress.step("export", number + 1, len(trained.members), "members", f"{member.name}: {one.chosen.precision}")
    largest = parity(onnx_votes, torch_votes, trained)
    _hold(largest, job_input, len(images), "ONNX")
    whole = None if evidence is None else _whole(trained, exported, evidence, wish, job_input["limits"])
    members = [_member(ctx, one) for one in exported]
    gates = [validation_gate(job_input["gates"], trained.metrics["validate"])]
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
        "export": {
            "precision": wish,
            "threads": _serving_threads(ctx, job_input),
            "limits": job_input["limits"],
            "loss": None if whole is None else whole.to_json(),
        },
        "gates": [gate for gate in gates if gate is not None],
        "environment": environment(),
    }
    validate("bundle", bundle, "the bundle")
    digest = ctx.objects.put_json(bundle)
    files = [member[part] for member in members for part in ("onnx", "onnxData", "safetensors") if part in member]
    return {
        "bundle": digest,
        "bytes": sum(int(file["bytes"]) for file in files) + len(ctx.objects.get(digest)),
        "parity": bundle["parity"],
        "members": [{key: member[key] for key in ("name", "precision", "variants")} for member in members],
        "gates": bundle["gates"],
    }


def _export(
    ctx: JobContext, job_input: dict[str, Any], member: TrainedMember, images: list[ImageRow], provider: str, evidence: _Evidence | None
) -> tuple[_Exported, Array, Array]:
    """One member in every precision asked for, with its fp32 logits of the parity images by ONNX and by PyTorch."""
    import torch

    found = weights_digest(member.ref, ctx)
    if found != member.weights_digest:
        raise BadInput(
            f"member {member.name} was trained on weights {member.weights_digest}, but {member.ref.weights} now gives {found}. "
            "Nothing was written. Restore those weights, or train again."
        )
    net = member_net(member, ctx)
    name, size = f"{member.name}.onnx", member.preprocess.size
    plain = pack(onnx_model(net, size, ("logit",)), name)
    pixels = _pixels(ctx, images, member)
    with torch.inference_mode():
        by_torch = _run_torch(net, member, pixels)
    threads = _serving_threads(ctx, job_input)
    with tempfile.TemporaryDirectory() as scratch:

        def opened(graph: Graph, precision: str, where: str, count: int = threads) -> Any:
            return open_session(graph, where, count, Path(scratch), ctx.cache_dir, size, precision)

        by_onnx = _logits(opened(plain, "fp32", CPU, ctx.threads), member, pixels)
        tensors, parameters = _tensors(net), sum(parameter.numel() for parameter in net.parameters())
        del net
        if evidence is None:
            where = provider if provider in (TENSORRT, TRTEXEC) else CPU
            if where != CPU:  # the engine stays in the cache for the miner of this machine, after the same check
                by_engine = _logits(opened(plain, "fp32", where), member, pixels)
                _hold(float(np.max(np.abs(sigmoid(by_engine) - sigmoid(by_torch)))), job_input, len(images), where)
            only = Variant("fp32", plain, where, None, _largest(by_onnx, by_torch), None)
            return _Exported(member, tensors, parameters, [only], only, {}), by_onnx, by_torch

        graphs = {"fp32": plain}
        wish = str(job_input["precision"])
        if wish in ("auto", "fp16"):
            graphs["fp16"] = to_fp16(plain, name)
        tries: _Int8 | None = None
        if wish in ("auto", "int8"):
            seen = evidence.pixels(member.preprocess, judged=False)
            tries = _Int8(ctx, plain, member, seen, lambda graph: opened(graph, "int8", CPU, ctx.threads), Path(scratch))
        ctx.progress.check()
        opened_all = {precision: opened(graph, precision, provider) for precision, graph in graphs.items()}
        counts = KEPT if provider in (CPU, CUDA) else KEPT[:1]
        made = [] if tries is None else tries.graphs(counts)
        small = [(kept, graph, rms, opened(graph, "int8", provider)) for kept, graph, rms in made]
        sessions = [*opened_all.values(), *(session for *_, session in small)]
        times = time_sessions(sessions, member.preprocess.tensor(pixels[:1]))
        judged_pixels = evidence.pixels(member.preprocess, judged=True)
        judged: dict[str, Array] = {}
        variants: list[Variant] = []

        def judge(precision: str, graph: Graph, session: Any, ms: float, kept: int = 0) -> Variant:
            difference = _largest(_logits(session, member, pixels), by_torch)
            if precision == "fp32":
                _hold(difference, job_input, len(images), provider)
            judged[precision] = _logits(session, member, judged_pixels, ctx.batch(BATCH))
            cost = loss(sigmoid(judged[precision]), sigmoid(judged["fp32"]), evidence.labels, len(evidence.judged))
            variant = Variant(precision, graph, provider, ms, difference, cost, kept_float=kept)
            ctx.progress.step("precisions", len(variants) + 1, len(graphs) + bool(small), "variants", f"{member.name} {precision}")
            return variant if precision == "fp32" else refuse(variant, above(cost, job_input["limits"][precision]))

        for (precision, session), ms in zip(opened_all.items(), times, strict=False):
            variants.append(judge(precision, graphs[precision], session, ms))
        tried: list[Variant] = []
        for index in by_nearness([(rms, ms) for (_, _, rms, _), ms in zip(small, times[len(graphs) :], strict=True)]):
            kept, graph, _, session = small[index]
            tried.append(judge("int8", graph, session, times[len(graphs) + index], kept))
            if tried[-1].refused is None:
                break
        if tried:
            variants.append(tried[-1] if tried[-1].refused is None else tried[0])
    chosen = pick(variants, wish, float(job_input["minSpeedUp"]), member.name)
    return _Exported(member, tensors, parameters, variants, chosen, judged), by_onnx, by_torch


class _Int8:
    """A member in int8: quantised with more and fewer layers in float, its logits matched to fp32's."""

    def __init__(
        self, ctx: JobContext, plain: Graph, member: TrainedMember, seen: Bytes, opened: Callable[[Graph], Any], scratch: Path
    ) -> None:
        self._ctx, self._member, self._seen, self._opened = ctx, member, seen, opened
        self._name = f"{member.name}.onnx"
        batches = list(batches_of(member.preprocess.tensor(seen), ctx.batch(CALIBRATION_BATCH)))
        self._quantiser = Quantiser(plain, self._name, batches, scratch)
        self._plain = self._logits(plain, seen)

    def _logits(self, graph: Graph, pixels: Bytes) -> Array:
        return _logits(self._opened(graph), self._member, pixels, self._ctx.batch(BATCH))

    def graphs(self, counts: Sequence[int]) -> Iterator[tuple[int, Graph, float]]:
        """Graphs that keep none and more and more of the costliest layers in float32: how many, the graph, and how far its logits are from
        those of fp32 on the calibration images (root mean square)."""
        few = self._seen[:SEARCH_IMAGES]

        def error(node: str) -> float:
            self._ctx.progress.check()
            return _rms(self._logits(self._quantiser.graph(only=[node]), few), self._plain[:SEARCH_IMAGES])

        order = ranked(self._quantiser.nodes, error, SEARCH_SECONDS) if max(counts) > 0 else []
        for kept in counts:
            if kept and kept >= len(order):
                break
            raw = self._quantiser.graph(order[:kept])
            logits = self._logits(raw, self._seen)
            scale, shift = match(logits, self._plain)
            self._ctx.progress.step("int8", kept, counts[-1], "layers in float", self._member.name)
            yield kept, matched(raw, self._name, scale, shift), _rms(logits * scale + shift, self._plain)


def _rms(a: Array, b: Array) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def _whole(trained: Trained, exported: list[_Exported], evidence: _Evidence, wish: str, limits: dict[str, Any]) -> Loss:
    """Loss of the ensemble as it will be served. Members that each are within their limit may together be not: then the costliest
    goes back to fp32, or, when its precision was asked for, LossAboveLimit is raised."""
    weights = [member.weight for member in trained.members]
    scale = (float(trained.calibration["a"]), float(trained.calibration["b"]))

    def ensemble(logits: list[Array]) -> Array:
        return calibrate(vote([sigmoid(one) for one in logits], weights), *scale)

    reference = ensemble([one.judged["fp32"] for one in exported])
    while True:
        found = loss(ensemble([one.judged[one.chosen.precision] for one in exported]), reference, evidence.labels, len(evidence.judged))
        smaller = [one for one in exported if one.chosen.precision != "fp32"]
        if not smaller:
            return found
        kind = "int8" if any(one.chosen.precision == "int8" for one in smaller) else "fp16"
        why = above(found, limits[kind])
        if why is None:
            return found
        if wish != "auto":
            raise LossAboveLimit(
                f"the ensemble in {wish} {why}, though each member alone is within it. No bundle was named; the trained weights are kept. "
                "Set `export.precision` to auto or fp32, or raise `export.limits`."
            )
        worst = max(smaller, key=lambda one: one.chosen.loss.reward if one.chosen.loss is not None else 0.0)
        worst.variants = [refuse(v, f"with the other members {why}") if v is worst.chosen else v for v in worst.variants]
        worst.chosen = worst.variants[0]


def _member(ctx: JobContext, one: _Exported) -> dict[str, Any]:
    """`BundleMember` of the contract; its files are stored."""
    member, graph = one.member, one.chosen.graph
    outside = {} if graph.data is None else {"onnxData": _file(ctx, graph.data_name, graph.data)}
    return {
        "name": member.name,
        "backbone": member.ref.backbone,
        "features": member.features,
        "weight": member.weight,
        "onnx": _file(ctx, f"{member.name}.onnx", graph.model),
        **outside,
        "safetensors": _file(ctx, f"{member.name}.safetensors", one.tensors),
        "precision": one.chosen.precision,
        "opset": opset(graph),
        "variants": [variant.to_json(variant is one.chosen) for variant in one.variants],
        "preprocess": member.preprocess.to_json(),
        "parameters": one.parameters,
    }


def validation_gate(thresholds: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any] | None:
    """`GateResult` of the validation images, all that is known at export; None when there is no such gate.

    As `src/domain/gates.ts` has it: the threshold must hold with the classes alike too, and is open (`passed` None) where one is missing.
    """
    threshold = thresholds.get("validation")
    if threshold is None:
        return None
    value, n = float(measured["accuracy"]), int(measured["n"])
    found: dict[str, Any] = {
        key: measured[key] for key in ("positives", "balanced") if key in measured
    }  # an older version did not tell them
    alike = measured.get("balanced", value)
    passed = None if alike is None and value >= threshold else min(value, value if alike is None else alike) >= threshold
    return {"gate": "validation", "threshold": float(threshold), "value": value, "n": n, **found, "passed": passed}


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


def _largest(a: Array, b: Array) -> float:
    largest = float(np.max(np.abs(sigmoid(a) - sigmoid(b))))
    return largest if np.isfinite(largest) else 1.0


def _hold(largest: float, job_input: dict[str, Any], n: int, engine: str) -> None:
    if not largest <= float(job_input["parityTolerance"]):
        raise ParityLost(
            f"{engine} and PyTorch differ by {largest:.2e} in probability on {n} images, "
            f"more than {job_input['parityTolerance']:.2e} allows. "
            "No bundle was named; the trained weights are kept. Do not serve this model: report the backbone and the versions."
        )


def _serving_threads(ctx: JobContext, job_input: dict[str, Any]) -> int:
    return int(job_input["servingThreads"] or ctx.threads)


def _parity_images(ctx: JobContext, job_input: dict[str, Any]) -> list[ImageRow]:
    """Images of the check, drawn by seed. Test images may serve: nothing is learned from a comparison of two programs."""
    rows = sorted(
        read_manifest(ctx.objects, job_input["parity"], "manifest of the parity check", refuse_test=False), key=lambda r: r.digest
    )
    if not rows:
        raise EmptySplit("the manifest of the parity check is empty: a bundle is only written when it was compared on images.")
    chosen = np.random.default_rng(int(job_input["seed"])).permutation(len(rows))[: int(job_input["parityImages"])]
    return [rows[index] for index in sorted(chosen)]


def _evidence(ctx: JobContext, job_input: dict[str, Any]) -> _Evidence:
    """Real images of the snapshot, by seed: losses on `validate` and `calibrate`, the classes alike as far as there are; ranges of int8
    on `train` and on what is left of `calibrate`. A test image is refused."""
    rows = sorted(read_manifest(ctx.objects, job_input["snapshot"], "snapshot"), key=lambda r: r.digest)
    real = [row for row in rows if not row.synthetic]
    rng = np.random.default_rng((int(job_input["seed"]), 17))

    def drawn(of: Sequence[ImageRow], count: int) -> list[ImageRow]:
        return [of[index] for index in rng.permutation(len(of))[:count]]

    pool = [row for row in real if row.pool in ("validate", "calibrate") and row.label is not None]
    count = int(job_input["lossImages"])
    judged = [row for label in (0, 1) for row in drawn([row for row in pool if row.label == label], (count + 1) // 2)]
    classes = {row.label for row in judged}
    if len(classes) < 2:
        raise (OneClass if classes else EmptySplit)(
            "a smaller precision is judged on labelled real images of both classes in `validate` and `calibrate`, and the snapshot has "
            f"{len(pool)} of {len(classes)} class there. Nothing was exported. Set `export.precision` to fp32, or import more images."
        )
    taken = {row.digest for row in judged}
    calibration = drawn(
        [row for row in real if row.pool in ("train", "calibrate") and row.digest not in taken], int(job_input["calibrationImages"])
    )
    if not calibration:
        raise EmptySplit(
            "int8 takes its ranges from real images of `train` and `calibrate`, and the snapshot has none. Set `export.precision` to fp32."
        )
    return _Evidence(ctx, calibration, judged)


def _pixels(ctx: JobContext, images: list[ImageRow], member: TrainedMember) -> Bytes:
    return np.stack([member.preprocess.pixels(decode(ctx.objects.get(row.digest), row.digest)) for row in images])


def _run_torch(net: nn.Module, member: TrainedMember, pixels: Bytes) -> Array:
    import torch

    fast = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
    parts = []
    for start in range(0, len(pixels), BATCH):
        x = torch.from_numpy(member.preprocess.tensor(pixels[start : start + BATCH])).to(memory_format=torch.channels_last)
        parts.append(fast(x).double().numpy())
    return np.concatenate(parts)


def _logits(session: Any, member: TrainedMember, pixels: Bytes, batch: int = 1) -> Array:
    """By default one by one, as the miner asks: a batch and its single images must agree as well. An engine that is asked by a
    process a call (`batch`) is asked for many at once."""
    batch = max(batch, getattr(session, "batch", 1))
    parts = [
        session.run(["logit"], {"input": member.preprocess.tensor(pixels[start : start + batch])})[0]
        for start in range(0, len(pixels), batch)
    ]
    return np.concatenate(parts).astype(np.float64)


def _tensors(net: nn.Module) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().clone().contiguous() for name, tensor in sorted(net.state_dict().items())})


def _file(ctx: JobContext, path: str, data: bytes) -> dict[str, Any]:
    ctx.objects.put(data)
    return {"path": path, "sha256": sha256(data), "bytes": len(data)}
