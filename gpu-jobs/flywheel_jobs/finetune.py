"""Full fine-tune of one member, from its probe: resumable to the step, and honest about the clock.

Order and augmentation of the images follow from seed, epoch and place alone, and the network stays in eval mode (batch
statistics frozen, no dropout), so that a run that was killed and resumed ends with the weights of one that was not.
Only the wall-clock cap, when it strikes, makes two runs differ; the note then says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .backbones import BackboneRef, FeatureKind, Preprocess, create, feature_net, onnx_session, to_onnx
from .context import JobContext
from .errors import Interrupted, NotFinite, OneImageTooBig, says_out_of_memory
from .features import augmented, decode
from .heads import Head
from .metrics import Array, Labels, measure, sigmoid
from .objects import write_atomic

WEIGHT_DECAY = 0.01
WARM_UP = 0.1
GAMMA = 2.0
CLIP = 1.0
CHECKPOINT_STEPS = 20
MAX_VALIDATE = 256
"""validation images measured after each epoch, drawn by seed when there are more"""


@dataclass(frozen=True)
class Images:
    """Images to learn from or to be measured on."""

    digests: Sequence[str]
    labels: Labels
    weights: Array
    """normalised by the caller: half for each class"""


@dataclass(frozen=True)
class Settings:
    """`fineTune` of the contract."""

    epochs: int
    batch: int
    backbone_lr: float
    head_lr: float
    max_seconds: float


@dataclass(frozen=True)
class Outcome:
    """The fine-tuned member, or None when it did worse than its probe; `note` says which and why."""

    ref: BackboneRef | None
    head: Head | None
    note: str


def learning_rate(step: int, steps: int) -> float:
    """Share of the full learning rate: linear warm-up over the first tenth, then a cosine to 0."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def fine_tune(
    ctx: JobContext,
    name: str,
    ref: BackboneRef,
    kind: FeatureKind,
    preprocess: Preprocess,
    probe: Head,
    train: Images,
    validate: Images,
    settings: Settings,
    seed: int,
    mark: str,
) -> Outcome:
    """Trains backbone and head and keeps the best weights by validation Brier, if they beat the probe.

    `mark` identifies the job's input: a checkpoint of another input is not used. Raises Interrupted after writing a
    checkpoint, OneImageTooBig when even single images do not fit, NotFinite when the loss is NaN or infinite.
    """
    import io

    import torch
    from torch import nn

    torch.set_num_threads(ctx.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    class Member(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = feature_net(create(ref, ctx.objects), (kind,))
            self.head = nn.Linear(len(probe.weight), 1)
            with torch.no_grad():
                self.head.weight.copy_(torch.from_numpy(probe.weight)[None])
                self.head.bias.fill_(probe.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.net(x)[0])[:, 0]
            return out

    model = Member().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()
    backbone_parameters = [p for n, p in model.named_parameters() if n.startswith("net.")]
    optimiser = torch.optim.AdamW(
        [{"params": backbone_parameters, "lr": settings.backbone_lr}, {"params": model.head.parameters(), "lr": settings.head_lr}],
        weight_decay=WEIGHT_DECAY,
    )
    rates = [settings.backbone_lr, settings.head_lr]

    count = len(train.digests)
    steps_an_epoch = math.ceil(count / settings.batch)
    steps = steps_an_epoch * settings.epochs
    chosen = np.sort(np.random.default_rng((seed, 1)).permutation(len(validate.digests))[:MAX_VALIDATE])
    pictures: dict[str, Image.Image] = {}

    def picture(digest: str) -> Image.Image:
        if digest not in pictures:
            if len(pictures) > 4096:
                pictures.clear()
            pictures[digest] = decode(ctx.objects.get(digest), digest)
        return pictures[digest]

    def tensor(pixels: list[Any]) -> torch.Tensor:
        return torch.from_numpy(preprocess.tensor(np.stack(pixels))).to(device, memory_format=torch.channels_last)

    def forward() -> Callable[[list[Any]], Array]:
        """The present network for measuring; on a CPU onnxruntime does it several times faster than eager PyTorch."""
        if device.type == "cuda":
            return lambda pixels: model(tensor(pixels)).double().cpu().numpy()
        session = onnx_session(to_onnx(model, preprocess.size, ("logit",)), ctx.threads)
        return lambda pixels: session.run(["logit"], {"input": preprocess.tensor(np.stack(pixels))})[0].astype(np.float64)

    def judge() -> tuple[float, float]:
        """Accuracy and Brier score on the validation images."""
        network = forward()
        parts = [chosen[start : start + 32] for start in range(0, len(chosen), 32)]
        with torch.inference_mode():
            logits = [network([preprocess.pixels(picture(validate.digests[i])) for i in part]) for part in parts]
        found = measure(sigmoid(np.concatenate(logits)), validate.labels[chosen])
        return float(found["accuracy"]), float(found["brier"])

    file = ctx.work_dir / f"finetune-{name}.pt"
    micro = ctx.batch(settings.batch)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": None, "probe": None, "capped": False, "micro": micro}
    if file.is_file():
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
            if loaded["mark"] == mark:
                model.load_state_dict(loaded.pop("model"))
                optimiser.load_state_dict(loaded.pop("optimiser"))
                state = {**loaded, "micro": min(loaded["micro"], micro)}
        except Exception as error:  # a checkpoint that cannot be read costs time, not the job
            ctx.progress.step("fine-tune", 0, steps, "steps", f"checkpoint unusable, starting over: {error}")
    began = time.monotonic() - float(state["seconds"])

    def save() -> None:
        state["seconds"] = time.monotonic() - began
        buffer = io.BytesIO()
        torch.save({**state, "mark": mark, "model": model.state_dict(), "optimiser": optimiser.state_dict()}, buffer)
        write_atomic(file, buffer.getvalue())

    def remember(score: tuple[float, float]) -> None:
        best = state["best"]
        if best is None or score[1] < best["brier"]:
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            state["best"] = {"accuracy": score[0], "brier": score[1], "weights": weights, "step": state["step"]}

    if state["probe"] is None:
        accuracy, score = judge()
        state["probe"] = {"accuracy": accuracy, "brier": score}

    weights = torch.from_numpy(train.weights * count / train.weights.sum()).float()
    labels = torch.from_numpy(train.labels).float()
    while state["step"] < steps and not state["capped"]:
        step = int(state["step"])
        epoch, place = divmod(step, steps_an_epoch)
        order = np.random.default_rng((seed, 2, epoch)).permutation(count)
        batch = order[place * settings.batch : (place + 1) * settings.batch]
        pixels = []
        for index in batch:
            rng = np.random.default_rng((seed, 3, epoch, int(index)))
            view = augmented(picture(train.digests[index]), rng)
            if rng.random() < 0.5:
                view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels.append(preprocess.pixels(view))
        share = learning_rate(step, steps)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * share
        loss = 0.0
        while True:
            try:
                optimiser.zero_grad(set_to_none=True)
                loss = 0.0
                for start in range(0, len(batch), state["micro"]):
                    part = batch[start : start + state["micro"]]
                    logits = model(tensor(pixels[start : start + state["micro"]]))
                    one = focal_loss(logits, labels[part].to(device), weights[part].to(device)) / len(batch)
                    one.backward()
                    loss += float(one.detach())
                break
            except (RuntimeError, MemoryError) as error:
                if not says_out_of_memory(error):
                    raise
                if state["micro"] <= 1:
                    raise OneImageTooBig(
                        f"one image at a time does not fit into memory: {error}. Use a bigger machine or a smaller backbone."
                    ) from error
                state["micro"] = max(1, state["micro"] // 2)
        if not math.isfinite(loss):
            raise NotFinite(
                f"the loss of {name} is {loss} at step {step + 1} of {steps}: training diverged. "
                "The last checkpoint and the probe were kept. Lower `fineTune.backboneLr` and `headLr`, or set `fineTune.mode` to never."
            )
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        state["step"] = step + 1
        state["capped"] = state["step"] < steps and time.monotonic() - began > settings.max_seconds
        if state["step"] % steps_an_epoch == 0 or state["capped"]:
            remember(judge())
        try:
            ctx.progress.step("fine-tune", state["step"], steps, "steps", name, loss)
        except Interrupted:
            save()
            raise
        if state["step"] % CHECKPOINT_STEPS == 0:
            save()
    save()

    best, before = state["best"], state["probe"]
    told = f"validate accuracy {best['accuracy']:.3f}, Brier {best['brier']:.4f}; probe {before['accuracy']:.3f}, {before['brier']:.4f}"
    if state["capped"]:
        told += f"; stopped by the time cap after {state['step']} of {steps} steps"
    better = (best["accuracy"], -best["brier"]) > (before["accuracy"], -before["brier"])
    if not better:
        return Outcome(None, None, f"fine-tune thrown away, no better than its probe: {told}")
    model.load_state_dict(best["weights"])
    from safetensors.torch import save as pack

    kept = {key.removeprefix("net.model."): value for key, value in best["weights"].items() if key.startswith("net.model.")}
    digest = ctx.objects.put(pack({key: value.contiguous() for key, value in sorted(kept.items())}))
    head = Head(best["weights"]["head.weight"][0].double().numpy(), float(best["weights"]["head.bias"][0]))
    return Outcome(BackboneRef(ref.backbone, f"object:{digest}", ref.resolution), head, f"fine-tuned: {told}")


def focal_loss(logits: Any, labels: Any, weights: Any) -> Any:
    """Sum over a batch of w (1 - p_t)^gamma (-log p_t), gamma = 2 (Lin et al. 2017)."""
    import torch

    cross = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (weights * (1 - torch.exp(-cross)) ** GAMMA * cross).sum()
