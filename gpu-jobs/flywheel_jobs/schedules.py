"""Numbers of a fine-tune that need no network: settings, learning rates, moving averages, when compiling pays. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """`fineTune` of the contract; see there."""

    epochs: int
    batch: int
    backbone_lr: float
    head_lr: float
    max_seconds: float
    layer_decay: float = 0.8
    weight_decay: float = 0.01
    warm_up: float = 0.1
    cycles: int = 1
    ema: float = 0.99
    patience: int = 3
    micro_batch: int = 0
    gradient_checkpointing: bool = False
    precision: str = "auto"
    compile: str = "auto"
    checkpoint_seconds: float = 30.0
    gamma: float = 2.0

    @classmethod
    def of(cls, wish: dict[str, Any], gamma: float) -> Settings:
        """From the contract's object, defaults filled in."""
        return cls(
            epochs=int(wish["epochs"]),
            batch=int(wish["batch"]),
            backbone_lr=float(wish["backboneLr"]),
            head_lr=float(wish["headLr"]),
            max_seconds=float(wish["maxSeconds"]),
            layer_decay=float(wish["layerDecay"]),
            weight_decay=float(wish["weightDecay"]),
            warm_up=float(wish["warmUp"]),
            cycles=int(wish["cycles"]),
            ema=float(wish["ema"]),
            patience=int(wish["patience"]),
            micro_batch=int(wish["microBatch"]),
            gradient_checkpointing=bool(wish["gradientCheckpointing"]),
            precision=str(wish["precision"]),
            compile=str(wish["compile"]),
            checkpoint_seconds=float(wish["checkpointSeconds"]),
            gamma=gamma,
        )


def learning_rate(step: int, steps: int, warm_up: float = 0.1, cycles: int = 1) -> float:
    """Share of the full learning rate: a linear warm-up, then `cycles` equal cosines, each from 1 to nearly 0 (Loshchilov and
    Hutter 2017)."""
    warm = max(1, round(warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    length = max(1.0, (steps - warm) / cycles)
    return 0.5 * (1 + math.cos(math.pi * (((step - warm) % length) / length)))


def ema_decay(step: int, full: float) -> float:
    """Decay of the moving average after `step` steps: short at first, so that it does not drag the start along."""
    return min(full, (1 + step) / (10 + step))


def compiling_pays(eager_seconds: float, compiled_seconds: float, remaining_steps: int) -> bool:
    """Whether compiled steps are at least 5% faster. Compiling itself is paid by then, so it does not count any more."""
    return remaining_steps > 0 and compiled_seconds < 0.95 * eager_seconds


def worth_trying(eager_seconds: float, remaining_steps: int, compile_seconds: float = 60.0, gain: float = 0.2) -> bool:
    """Whether the run is long enough that a usual gain would earn back a usual compilation."""
    return gain * eager_seconds * remaining_steps > compile_seconds


def precision_of(wish: str, cuda: bool, bf16: bool) -> str:
    """fp32, bf16 or fp16: `auto` takes what the device is fast in; fp16 is for GPUs alone."""
    if wish == "auto":
        return ("bf16" if bf16 else "fp16") if cuda else "fp32"
    return "fp32" if wish == "fp16" and not cuda else wish
