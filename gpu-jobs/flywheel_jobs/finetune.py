"""Full fine-tune of one member, from its probe: resumable to the step, and honest about the clock.

Order and augmentation of the images follow from seed, epoch and place alone, and the network stays in eval mode (batch
statistics frozen, no dropout), so that a run that was killed and resumed ends with the weights of one that was not.
Only the wall-clock cap, when it strikes, and compiling on a GPU make two runs differ; the note then says so.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .augment import Augment
from .backbones import Computed, Floats, Preprocess, onnx_session
from .board import Board
from .context import JobContext
from .errors import Interrupted, NotFinite, OneImageTooBig, says_out_of_memory
from .features import BATCH, Features
from .heads import Head, evidence, fit_scale
from .loader import Pictures, Views, batches, says_worker_died, worker_count, worker_died
from .machine import peak_memory_mb
from .metrics import Array, Labels, sigmoid
from .nets import FeatureKind, feature_net, to_onnx
from .objects import write_atomic
from .sampling import Plan
from .schedules import Settings, compiling_pays, ema_decay, learning_rate, precision_of, worth_trying
from .votes import WORSE_CONFIDENCE, share_worse
from .weights import BackboneRef, create

if TYPE_CHECKING:
    import torch
    from torch import nn

CLIP = 1.0
CHECKPOINT = 2
"""raise when the checkpoint's contents change: older ones are then not gone on from"""
COMPUTED: tuple[Computed, ...] = ("final", "mid")
"""what judging computes: both kinds that the feature store keeps, in its order"""
MAX_VALIDATE = 256
"""validation images measured after each epoch, drawn by seed when there are more"""
BOUNDARY_DOUBT = (1.5, 3.0)
"""standard deviations of a fine-tune's scale about 1 and shift about 0, in logits, before the validation images are seen: learning
from degraded views and a focal loss move the boundary by one and more, so that evidence decides soon"""
HEAVY = ("weights", "features")
"""of the best so far, what lies in a file of its own"""
COMPILE_AFTER = 12
"""steps of this process before compiling is considered; the last of them are timed"""
TIMED = 8


@dataclass(frozen=True)
class Images:
    """Images to learn from or to be measured on."""

    digests: Sequence[str]
    labels: Labels
    groups: Sequence[str] | None = None
    """by which errors are resampled and evidence is counted; None: each image alone"""


@dataclass(frozen=True)
class Validated:
    """Features of validation images as they are, by the fine-tuned backbone: [n, d]."""

    digests: list[str]
    final: Floats
    mid: Floats


@dataclass(frozen=True)
class Outcome:
    """The fine-tuned member, or None when it did worse than what it started from; `note` says which and why."""

    ref: BackboneRef | None
    head: Head | None
    note: str
    facts: dict[str, Any] = field(default_factory=dict)
    """how it ran: device, precision, compiled, steps ..."""
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """`steps`: loss and learning rate; `epochs`: accuracy and Brier score on `validate`; `probe`: the one before, to be beaten"""
    events: tuple[Path, ...] = ()
    """TensorBoard event files"""
    validated: Validated | None = None
    """what judging saw of the weights that were kept"""


@dataclass(frozen=True)
class Job:
    """All that a fine-tune needs beside the context."""

    name: str
    ref: BackboneRef
    kind: FeatureKind
    preprocess: Preprocess
    probe: Head
    train: Images
    validate: Images
    plan: Plan
    augmentation: dict[str, Any]
    loader: dict[str, Any]
    settings: Settings
    seed: int
    mark: str
    """identifies the job's input: a checkpoint of another input is not used"""
    known: Array | None = None
    """logits of `validate` by `ref` and `probe`, where the caller has them from kept features; None: measured here"""
    goes_on: bool = False
    """from a fine-tuned parent instead of a probe. The parent was the best of its epochs on `validate`, and so looks better there than it
    is: what goes on is kept unless it is worse beyond doubt"""


def fine_tune(ctx: JobContext, job: Job) -> Outcome:
    """Trains backbone and head and keeps the best weights by validation Brier, if they beat the probe.

    Raises Interrupted after writing a checkpoint, OneImageTooBig when even single images do not fit, NotFinite when the loss is NaN
    or infinite.
    """
    return _Run(ctx, job).run()


def build_member(ref: BackboneRef, kind: FeatureKind, head: Head, ctx: JobContext, fused: bool) -> nn.Module:
    """Backbone and linear head as one module: pixels to logits [n]."""
    import torch
    from torch import nn

    class Member(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = feature_net(create(ref, ctx.objects, fused), (kind,))
            self.head = nn.Linear(len(head.weight), 1)
            with torch.no_grad():
                self.head.weight.copy_(torch.from_numpy(head.weight)[None])
                self.head.bias.fill_(head.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.net(x)[0])[:, 0]
            return out

    return Member().eval()


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """AdamW's groups, each with its full rate as `full`: layers farther from the head learn slower, biases and norms do not decay."""
    from timm.optim._param_groups import param_groups_layer_decay

    backbone: Any = model.net.model  # type: ignore[union-attr]
    skip = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()
    groups: list[dict[str, Any]]
    if hasattr(backbone, "group_matcher"):
        groups = param_groups_layer_decay(backbone, settings.weight_decay, no_weight_decay_list=skip, layer_decay=settings.layer_decay)
    else:
        groups = [{"params": list(backbone.parameters()), "weight_decay": settings.weight_decay}]
    out = [
        {"params": one["params"], "weight_decay": one["weight_decay"], "full": settings.backbone_lr * one.get("lr_scale", 1.0)}
        for one in groups
    ]
    head = list(model.head.parameters())  # type: ignore[union-attr]
    return [{"lr": one["full"], **one} for one in [*out, {"params": head, "weight_decay": settings.weight_decay, "full": settings.head_lr}]]


class _Run:
    """One fine-tune. State that must survive a kill is in `self.state`; everything else follows from the job."""

    def __init__(self, ctx: JobContext, job: Job) -> None:
        import torch

        torch.set_num_threads(ctx.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False  # what judging computes is kept as features: fp32 everywhere
        self.ctx, self.job, self.set = ctx, job, job.settings
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.precision = precision_of(self.set.precision, self.cuda, self.cuda and torch.cuda.is_bf16_supported())
        self.model = build_member(job.ref, job.kind, job.probe, ctx, fused=self.cuda).to(self.device)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        self.optimiser = torch.optim.AdamW(parameter_groups(self.model, self.set))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.shadow = [p.detach().clone() for p in self.model.parameters()] if self.set.ema else None
        self.mean = torch.tensor(job.preprocess.mean, device=self.device)
        self.std = torch.tensor(job.preprocess.std, device=self.device)

        self.per_epoch = math.ceil(job.plan.length / self.set.batch)
        self.steps = self.per_epoch * self.set.epochs
        count = len(job.validate.digests)
        self.chosen = np.sort(np.random.default_rng((job.seed, 1)).permutation(count)[:MAX_VALIDATE])
        self.judged: NDArray[np.uint8] | None = None
        self.weights = torch.from_numpy(job.plan.loss_weights).float().to(self.device)
        self.labels = torch.from_numpy(job.train.labels).float().to(self.device)

        self.file = ctx.work_dir / f"finetune-{job.name}.pt"
        self.board = Board(ctx.work_dir / "tensorboard" / job.name)
        micro = ctx.batch(self.set.micro_batch or self.set.batch)
        self.state: dict[str, Any] = {
            "step": 0,
            "seconds": 0.0,
            "best": None,
            "probe": None,
            "capped": False,
            "stopped": False,
            "stale": 0,
            "micro": min(micro, self.set.batch),
            "steps": [],
            "epochs": [],
            "halved": 0,
        }
        self._resume()
        self.began = time.monotonic() - float(self.state["seconds"])
        self.saved = time.monotonic()
        self.compiled = False
        self.compile_note = ""
        self.times: list[float] = []

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        import torch

        if not self.file.is_file():
            return
        try:
            loaded = torch.load(self.file, map_location="cpu", weights_only=True)
            if loaded["mark"] != self.job.mark or loaded.pop("format", None) != CHECKPOINT:
                return
            best = loaded["best"]
            if best is not None:
                heavy = torch.load(self.ctx.work_dir / best["file"], map_location="cpu", weights_only=True)
                best |= {key: heavy[key] for key in HEAVY}
            self.model.load_state_dict(loaded.pop("model"))
            self.optimiser.load_state_dict(loaded.pop("optimiser"))
            self.scaler.load_state_dict(loaded.pop("scaler"))
            shadow = loaded.pop("shadow")
            self.shadow = None if shadow is None else [one.to(self.device) for one in shadow]
            self.state = {**loaded, "micro": min(loaded["micro"], self.state["micro"])}
        except Exception as error:  # a checkpoint that cannot be read costs time, not the job
            self.ctx.progress.step("fine-tune", 0, self.steps, "steps", f"checkpoint unusable, starting over: {error}")

    def _save(self) -> None:
        """The best weights lie in a file of their own, written once; the checkpoint names it and is written after it."""
        import torch

        best = self.state["best"]
        if best is not None and not (self.ctx.work_dir / best["file"]).is_file():
            _write(self.ctx.work_dir / best["file"], {key: best[key] for key in HEAVY})
        self.state["seconds"] = time.monotonic() - self.began
        told = None if best is None else {key: value for key, value in best.items() if key not in HEAVY}
        parts = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict()}
        _write(self.file, {**self.state, **parts, "best": told, "shadow": self.shadow, "mark": self.job.mark, "format": CHECKPOINT})
        for old in self.ctx.work_dir.glob(f"finetune-{self.job.name}-best-*.pt"):
            if best is None or old.name != best["file"]:
                old.unlink(missing_ok=True)
        if self.cuda:
            torch.cuda.synchronize()
        self.saved = time.monotonic()

    # --- measuring ---------------------------------------------------------------------------------------------------

    def _tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, size, size, 3] bytes as the network's input, normalised on the device: a quarter of the bytes to move."""
        import torch

        x = pixels.to(self.device, non_blocking=True).float().div_(255).sub_(self.mean).div_(self.std)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    @contextlib.contextmanager
    def _averaged(self) -> Any:
        """The moving average in the place of the weights."""
        import torch

        if self.shadow is None:
            yield
            return
        own = [p.detach().clone() for p in self.model.parameters()]
        with torch.no_grad():
            for p, one in zip(self.model.parameters(), self.shadow, strict=True):
                p.copy_(one)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, one in zip(self.model.parameters(), own, strict=True):
                    p.copy_(one)

    def _judge(self) -> tuple[Array, dict[Computed, Floats]]:
        """Logits of the validation images, in fp32, and the features behind them; on a CPU onnxruntime is several times faster than
        eager PyTorch."""
        import torch

        self._checkpointing(False)
        net = feature_net(self.model.net.model, COMPUTED)  # type: ignore[union-attr, arg-type]
        if self.judged is None:
            pictures, digests = Pictures(self.ctx.objects), self.job.validate.digests
            self.judged = np.stack([self.job.preprocess.pixels(pictures(digests[i])) for i in self.chosen])
        session = None if self.cuda else onnx_session(to_onnx(net, self.job.preprocess.size, COMPUTED), self.ctx.threads)
        parts: list[list[Floats]] = []
        with torch.inference_mode():
            batch = self.ctx.batch(BATCH)
            for start in range(0, len(self.judged), batch):
                pixels = self.judged[start : start + batch]
                if session is not None:
                    parts.append(session.run(list(COMPUTED), {"input": self.job.preprocess.tensor(pixels)}))
                else:
                    parts.append([out.float().cpu().numpy() for out in net(self._tensor(torch.from_numpy(pixels)))])
        found: dict[Computed, Floats] = {kind: np.concatenate([part[i] for part in parts]) for i, kind in enumerate(COMPUTED)}
        head: Any = self.model.head
        weight, bias = head.weight.detach()[0].double().cpu().numpy(), float(head.bias.detach())
        features = Features(found["final"][:, None], found["mid"][:, None]).of(self.job.kind)[:, 0]
        return Head(weight, bias).logits(features), found

    def _score(self, logits: Array) -> Score:
        if not np.isfinite(logits).all():
            raise self._diverged("the validation score")
        return settled(logits, self.job.validate.labels[self.chosen], self._judges())

    def _judges(self) -> list[str]:
        """Groups of the images that judge."""
        held = self.job.validate
        return [(held.digests if held.groups is None else held.groups)[i] for i in self.chosen]

    def _checkpointing(self, on: bool) -> None:
        backbone: Any = self.model.net.model  # type: ignore[union-attr]
        if self.set.gradient_checkpointing and hasattr(backbone, "set_grad_checkpointing"):
            backbone.set_grad_checkpointing(on)

    def _end_of_epoch(self) -> None:
        """Judges the averaged weights, keeps them when they are the best, and counts epochs that are no better."""
        import torch

        with self._averaged():
            logits, found = self._judge()
            score = self._score(logits)
            step, best = int(self.state["step"]), self.state["best"]
            if best is None or score.brier < best["brier"]:
                weights = {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}
                file = f"finetune-{self.job.name}-best-{step}.pt"
                (self.ctx.work_dir / file).unlink(missing_ok=True)  # of another input
                heavy = {"weights": weights, "features": {kind: torch.from_numpy(values) for kind, values in found.items()}}
                self.state["best"] = {**asdict(score), "logits": torch.from_numpy(logits), "step": step, "file": file, **heavy}
                self.state["stale"] = 0
            else:
                self.state["stale"] += 1
        self.state["epochs"].append({"epoch": step / self.per_epoch, "step": step, "accuracy": score.accuracy, "brier": score.brier})
        self.board.scalars(step, validate__accuracy=score.accuracy, validate__brier=score.brier)
        self.state["stopped"] = bool(self.set.patience and self.state["stale"] >= self.set.patience and step < self.steps)

    # --- a step ------------------------------------------------------------------------------------------------------

    def _step(self, index: Any, pixels: torch.Tensor) -> tuple[float, float]:
        """One step of the optimiser over a batch, in as many parts as memory asks for: (loss, learning rate of the head)."""
        import torch
        from torch import nn

        step = int(self.state["step"])
        share = learning_rate(step, self.steps, self.set.warm_up, self.set.cycles)
        for group in self.optimiser.param_groups:
            group["lr"] = group["full"] * share
        index = torch.from_numpy(index)
        labels, weights = self.labels[index.to(self.device)], self.weights[index.to(self.device)]
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        while True:
            try:
                self.optimiser.zero_grad(set_to_none=True)
                loss = 0.0
                for start in range(0, len(pixels), self.state["micro"]):
                    part = slice(start, start + self.state["micro"])
                    with torch.autocast(self.device.type, half) if half is not None else contextlib.nullcontext():
                        logits = self.forward(self._tensor(pixels[part]))
                    one = focal_loss(logits.float(), labels[part], weights[part], self.set.gamma) / len(pixels)
                    self.scaler.scale(one).backward()
                    loss += float(one.detach())
                break
            except Exception as error:
                if self.compiled and compiling_failed(error):
                    self._go_on_eagerly(error)
                    continue
                if says_worker_died(error):  # told in whatever line of this process runs at that moment
                    raise worker_died(error) from error
                if not says_out_of_memory(error):
                    raise
                if self.state["micro"] <= 1:
                    raise OneImageTooBig(
                        f"one image at a time does not fit into memory: {error}. Use a bigger machine, a smaller backbone or "
                        "`fineTune.gradientCheckpointing`."
                    ) from error
                self.state["micro"] = max(1, self.state["micro"] // 2)
                self.state["halved"] += 1
            if self.cuda:  # outside the handler: the exception holds the failed graph
                torch.cuda.empty_cache()
        if not math.isfinite(loss):
            raise self._diverged("the loss")
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.shadow is not None:
            decay = ema_decay(step, self.set.ema)
            with torch.no_grad():
                torch._foreach_lerp_(self.shadow, [p.detach() for p in self.model.parameters()], 1 - decay)
        return loss, self.set.head_lr * share

    def _diverged(self, what: str) -> NotFinite:
        return NotFinite(
            f"{what} of {self.job.name} is not a finite number at step {self.state['step'] + 1} of {self.steps}: training diverged. "
            "The features were kept, and the last checkpoint where one was written. Lower `fineTune.backboneLr` and `headLr`, or set "
            "`fineTune.mode` to never."
        )

    def _consider_compiling(self, seconds: float) -> None:
        """Compiles after some steps when the run is long enough for it, and goes back when the compiled steps are no faster."""
        import torch

        wish = self.set.compile
        if wish == "never" or (wish == "auto" and not self.cuda):
            return
        self.times.append(seconds)
        seen, remaining = len(self.times), self.steps - int(self.state["step"])
        if seen == COMPILE_AFTER and not self.compiled:
            eager = float(np.median(self.times[-TIMED:]))
            if wish == "always" or worth_trying(eager, remaining):
                # not dynamic: after the shorter last batch of an epoch every batch would go through the slower kernels of any size
                self.forward, self.compiled = torch.compile(self.model, dynamic=False), True
                self.compile_note = f"compiled after steps of {eager:.3f} s"
            else:
                self.compile_note = "not compiled: the run is too short to earn it back"
        elif seen == 2 * COMPILE_AFTER and self.compiled:
            eager, now = (
                float(np.median(self.times[COMPILE_AFTER - TIMED : COMPILE_AFTER])),
                float(np.median(self.times[-TIMED:])),
            )
            spent = sum(self.times[COMPILE_AFTER:]) - now * COMPILE_AFTER
            self.compile_note = f"a step took {eager:.3f} s, compiled {now:.3f} s; compiling took {spent:.0f} s"
            if wish == "auto" and not compiling_pays(eager, now, remaining):
                self.forward, self.compiled = self.model, False
                self.compile_note += ": not worth it"

    def _go_on_eagerly(self, error: Exception) -> None:
        """The network stays in eval mode, so that the step that failed can be done again without a trace of the attempt."""
        import torch

        self.forward, self.compiled = self.model, False
        why = str(error).strip().split("\n")[0]
        self.compile_note = f"not compiled, the run went on without: {type(error).__name__}: {why}"
        torch._dynamo.reset()

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        import torch

        state, job = self.state, self.job
        if state["probe"] is None:
            logits = self._judge()[0] if job.known is None else job.known[self.chosen]
            state["probe"] = {**asdict(self._score(logits)), "logits": torch.from_numpy(logits)}
        views = Views(self.ctx.objects, job.train.digests, job.preprocess, Augment(job.augmentation, job.preprocess.size), job.seed)
        workers = worker_count(job.loader["workers"], self.ctx.threads, self.ctx.batch_divisor)
        stream = batches(
            views, job.plan, self.set.batch, self.set.epochs, int(state["step"]), workers, int(job.loader["prefetch"]), self.cuda
        )
        started, done = time.monotonic(), 0
        self._checkpointing(True)
        try:
            while state["step"] < self.steps and not (state["capped"] or state["stopped"]):
                index, pixels = next(stream)
                before = time.monotonic()
                loss, rate = self._step(index, pixels)
                self._consider_compiling(time.monotonic() - before)
                state["step"] += 1
                done += len(index)
                state["steps"].append({"step": state["step"], "loss": loss, "lr": rate})
                state["capped"] = state["step"] < self.steps and time.monotonic() - self.began > self.set.max_seconds
                ended = state["step"] % self.per_epoch == 0
                if ended or state["capped"]:
                    self._end_of_epoch()
                    self._checkpointing(True)
                speed = done / max(time.monotonic() - started, 1e-9)
                self.board.scalars(state["step"], train__loss=loss, train__lr=rate, speed__images_per_second=speed)
                if ended or time.monotonic() - self.saved >= self.set.checkpoint_seconds:
                    self._save()
                self.ctx.progress.step(
                    "fine-tune",
                    state["step"],
                    self.steps,
                    "steps",
                    job.name,
                    loss,
                    epoch=round(state["step"] / self.per_epoch, 3),
                    step=state["step"],
                    learningRate=rate,
                    imagesPerSecond=round(speed, 2),
                    etaSeconds=round((self.steps - state["step"]) * self.set.batch / speed, 1),
                    memoryMb=peak_memory_mb(self.cuda),
                )
        except Interrupted:
            self._save()
            raise
        finally:
            stream.close()  # type: ignore[attr-defined]
            events = tuple(self.board.close())
        self._save()
        return self._outcome(workers, events)

    def _outcome(self, workers: int, events: tuple[Path, ...]) -> Outcome:
        state, job = self.state, self.job
        best, before = state["best"], state["probe"]
        told = f"validate accuracy {best['accuracy']:.3f}, Brier {best['brier']:.4f}; "
        start = "parent" if job.goes_on else "probe"
        told += f"{start} {before['accuracy']:.3f}, {before['brier']:.4f}"
        if state["capped"]:
            told += f"; stopped by the time cap after {state['step']} of {self.steps} steps"
        if state["stopped"]:
            told += f"; stopped early after {state['step']} of {self.steps} steps: {self.set.patience} epochs were no better"
        facts = {
            "device": self.device.type,
            "precision": self.precision,
            "compiled": self.compiled,
            **({"compileNote": self.compile_note} if self.compile_note else {}),
            "images": job.plan.length,
            "steps": state["step"],
            "bestStep": best["step"],
            "boundary": {"scale": best["scale"], "shift": best["shift"]},
            "batch": self.set.batch,
            "microBatch": state["micro"],
            "halvedByMemory": state["halved"],
            "workers": workers,
            "seconds": round(float(state["seconds"]), 1),
            "peakMemoryMb": peak_memory_mb(self.cuda),
        }
        history = {
            "steps": copy.deepcopy(state["steps"]),
            "epochs": copy.deepcopy(state["epochs"]),
            "probe": [{key: value for key, value in before.items() if key != "logits"}],
        }
        better = best["brier"] < before["brier"]  # the score that chose the epoch: accuracy hangs on single images
        if job.goes_on:
            now, then = (one["scale"] * one["logits"].numpy() + one["shift"] for one in (best, before))
            worse = share_worse(now, then, job.validate.labels[self.chosen], self._judges(), job.seed)
            told += f"; worse in {worse:.0%} of resamples by group"
            better = worse < WORSE_CONFIDENCE
        if not better:
            return Outcome(None, None, f"fine-tune thrown away, no better than its {start}: {told}", facts, history, events)
        from safetensors.torch import save as pack

        kept = {key.removeprefix("net.model."): value for key, value in best["weights"].items() if key.startswith("net.model.")}
        digest = self.ctx.objects.put(pack({key: value.contiguous() for key, value in sorted(kept.items())}))
        raw = Head(best["weights"]["head.weight"][0].double().numpy(), float(best["weights"]["head.bias"][0]))
        head = raw.scaled(best["scale"], best["shift"])
        ref = BackboneRef(job.ref.backbone, f"object:{digest}", job.ref.resolution)
        digests = [job.validate.digests[i] for i in self.chosen]
        validated = Validated(digests, *(best["features"][kind].numpy() for kind in COMPUTED))
        return Outcome(ref, head, f"fine-tuned: {told}", facts, history, events, validated)


def _write(file: Path, value: Any) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_atomic(file, buffer.getvalue())


def compiling_failed(error: Exception) -> bool:
    """Whether an exception of a compiled step may be the compiler's: any but memory that the step itself could not have."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException) or not (says_out_of_memory(error) or says_worker_died(error))


@dataclass(frozen=True)
class Score:
    """Accuracy and Brier score, classes counting alike as validators draw them, of sigmoid(scale * logit + shift)."""

    accuracy: float
    brier: float
    scale: float
    shift: float


def settled(logits: Array, labels: Labels, groups: Sequence[str]) -> Score:
    """What logits [n] are worth once their scale and boundary are set by as much as the groups are evidence of; as they are, where a
    class is missing.

    Training on degraded views with a focal loss ranks images better than the probe does and still answers worse, because its
    boundary has moved: on street photographs every roadwork was found and a quarter of the rest besides. Two numbers mend that. The
    probe is judged in the same way, so that neither gains by it.
    """
    if labels.min() == labels.max():
        return score_of(logits, labels)
    return score_of(logits, labels, *fit_scale(logits, labels, class_weights(labels), evidence(labels, groups), doubt=BOUNDARY_DOUBT))


def class_weights(labels: Labels) -> Array:
    """Weights of images, summing to 1, half for each class; alike where a class is missing."""
    counts = np.bincount(labels, minlength=2)
    return np.full(len(labels), 1 / len(labels)) if 0 in counts else 0.5 / counts[labels]


def score_of(logits: Array, labels: Labels, scale: float = 1.0, shift: float = 0.0) -> Score:
    """The score of logits [n] at a scale and boundary that stand. Where a class is missing the images count alike."""
    weights = class_weights(labels)
    p = sigmoid(scale * logits + shift)
    return Score(float(weights @ ((p > 0.5) == (labels == 1))), float(weights @ (p - labels) ** 2), scale, shift)


def focal_loss(logits: Any, labels: Any, weights: Any, gamma: float = 2.0) -> Any:
    """Sum over a batch of w (1 - p_t)^gamma (-log p_t) (Lin et al. 2017); gamma 0 is cross entropy."""
    import torch

    cross = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (weights * (1 - torch.exp(-cross)) ** gamma * cross).sum()
