"""Pictures of a training run: learning curves, confusion matrix, reliability diagram, and a sheet of the worst errors, as PNG.

Drawn on the `validate` images alone, as the ensemble would answer. Equal runs give equal bytes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .metrics import Array, Labels
from .spec import ImageRow

BINS = 10
WORST = 12
TILE = (320, 240)
BLUE, ORANGE, GREY, PALE = "#2b6cb0", "#dd6b20", "#718096", "#cbd5e0"
SMOOTH = 30
"""a loss of more steps than twice this is drawn as a moving mean as well, over this part of the run"""


def reliability(p: Array, y: Labels, bins: int = BINS) -> list[dict[str, float]]:
    """For each bin of equal width that holds something: mean probability, share with roadwork, images."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {"mean": float(p[place == k].mean()), "share": float(y[place == k].mean()), "n": int((place == k).sum())}
        for k in range(bins)
        if (place == k).any()
    ]


def calibration_error(p: Array, y: Labels, bins: int = BINS) -> float:
    """Expected calibration error: mean distance of share and probability over the bins, weighted by images."""
    return float(sum(one["n"] * abs(one["share"] - one["mean"]) for one in reliability(p, y, bins)) / len(p))


def confusion(p: Array, y: Labels) -> list[list[int]]:
    """[[true negatives, false positives], [false negatives, true positives]] at 0.5."""
    said = p > 0.5
    return [[int(((y == label) & (said == bool(answer))).sum()) for answer in (0, 1)] for label in (0, 1)]


def worst(p: Array, y: Labels, count: int = WORST) -> list[int]:
    """Indices of the largest errors |p - y|, the worst first; ties by place."""
    error = np.abs(p - y)
    return [int(i) for i in np.argsort(-error, kind="stable")[:count]]


def _figure(cache_dir: Path, width: float, height: float) -> Any:
    # matplotlib looks for its fonts once a machine: it may keep the list
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir / "matplotlib"))
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw_confusion(cache_dir: Path, p: Array, y: Labels) -> bytes:
    """Counts and shares within each true class."""
    table = np.array(confusion(p, y))
    figure = _figure(cache_dir, 4.2, 3.8)
    axes = figure.add_subplot()
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in (0, 1):
        for column in (0, 1):
            text = f"{table[row, column]}\n{share[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color="white" if share[row, column] > 0.5 else "black")
    axes.set_xticks([0, 1], ["no roadwork", "roadwork"])
    axes.set_yticks([0, 1], ["no roadwork", "roadwork"])
    axes.set_xlabel("answered")
    axes.set_ylabel("true")
    axes.set_title(f"validate, {len(p)} images")
    return _png(figure)


def draw_reliability(cache_dir: Path, p: Array, y: Labels) -> bytes:
    """Share with roadwork against probability, and how many images each point stands for."""
    figure = _figure(cache_dir, 4.4, 4.8)
    axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    points = reliability(p, y)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.plot([one["mean"] for one in points], [one["share"] for one in points], color=BLUE, linewidth=0.8, alpha=0.5)
    for one in points:  # with the binomial deviation of so many images: few say little
        deviation = float(np.sqrt(one["mean"] * (1 - one["mean"]) / one["n"]))
        axes.errorbar(
            one["mean"], one["share"], yerr=deviation, marker="o", color=BLUE, elinewidth=1, markersize=3 + min(9, one["n"] ** 0.5)
        )
    axes.set_ylabel("share with roadwork")
    axes.set_title(f"calibration error {calibration_error(p, y):.3f}, Brier {float(np.mean((p - y) ** 2)):.4f}")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    below.hist(p, bins=BINS, range=(0, 1), color=BLUE)
    below.set_xlabel("probability of roadwork")
    below.set_ylabel("images")
    return _png(figure)


def draw_curves(cache_dir: Path, history: dict[str, Any]) -> bytes:
    """What each member went through: its probe (how it does with more images, the settings its head was chosen from), and its
    fine-tune (loss, learning rate, and validation score beside that of the probe it had to beat)."""
    rows: list[tuple[Callable[..., None], str, dict[str, Any]]] = []
    for name, told in history["members"].items():
        tune = told.get("fineTune")
        if told.get("curve") or not tune:
            rows.append((_draw_probe, name, told))
        if tune and tune["steps"]:
            rows.append((_draw_fine_tune, name, told))
    figure = _figure(cache_dir, 9, max(2.8, 2.8 * len(rows)))
    for number, (draw, name, told) in enumerate(rows):
        draw(*(figure.add_subplot(len(rows), 2, 2 * number + side) for side in (1, 2)), name, told)
    return _png(figure)


def _draw_probe(left: Any, right: Any, name: str, told: dict[str, Any]) -> None:
    curve, sweep = told.get("curve") or [], told["sweep"]
    left.set_title(f"{name}: probe", fontsize=10)
    if curve:
        left.plot([one["images"] for one in curve], [one["brier"] for one in curve], marker="o", color=BLUE)
        left.set_ylim(bottom=0)
    else:
        left.text(0.5, 0.5, "the parent's settings stand: no curve", ha="center", va="center", transform=left.transAxes, color=GREY)
    left.set_xlabel("images learned from (whole groups)")
    left.set_ylabel("Brier on validate")
    taken = [{key: value for key, value in one.items() if key != "brier"} == told.get("head") for one in sweep]
    bars = right.bar(range(len(sweep)), [one["brier"] for one in sweep], color=[ORANGE if one else PALE for one in taken], width=0.6)
    right.bar_label(bars, fmt="%.4f", fontsize=7)
    right.margins(y=0.12)
    right.set_xlim(-0.7, max(len(sweep), 3) - 0.3)
    right.set_xticks(range(len(sweep)), [_short(one) for one in sweep], rotation=30, ha="right", fontsize=7)
    right.set_ylabel("Brier out of fold")
    right.set_title("settings of the head (taken: orange)", fontsize=10)


def _draw_fine_tune(left: Any, right: Any, name: str, told: dict[str, Any]) -> None:
    tune = told["fineTune"]
    steps, losses = [one["step"] for one in tune["steps"]], [one["loss"] for one in tune["steps"]]
    window = max(1, len(losses) // SMOOTH)
    left.plot(steps, losses, color=BLUE, linewidth=1, alpha=1 if window == 1 else 0.3)
    if window > 1:
        left.plot(steps[window - 1 :], np.convolve(losses, np.full(window, 1 / window), "valid"), color=BLUE, linewidth=1.5)
    left.set_xlabel("step")
    left.set_ylabel("loss" if window == 1 else f"loss (mean of {window})", color=BLUE)
    rate = left.twinx()
    rate.plot(steps, [one["lr"] for one in tune["steps"]], color=GREY, linewidth=0.8)
    rate.set_ylabel("learning rate of the head", color=GREY)
    kept = told["stage"] == "fine-tune"
    left.set_title(f"{name}: fine-tune {'kept' if kept else 'thrown away'}", fontsize=10)
    epochs = tune["epochs"]
    right.plot([one["epoch"] for one in epochs], [one["brier"] for one in epochs], marker="o", color=ORANGE, label="fine-tune")
    for before in tune.get("probe", []):
        right.axhline(before["brier"], color=GREY, linestyle="--", linewidth=1, label=f"its probe ({before['accuracy']:.1%} right)")
    right.set_xlabel("epoch")
    right.set_ylabel("Brier on validate")
    best = max((one["accuracy"] for one in epochs), default=0.0)
    right.set_title(f"at best {best:.1%} right on validate", fontsize=10)
    right.legend(fontsize=7)


def _short(one: dict[str, Any]) -> str:
    return f"L2 {one['strength']:g}" if one["method"] == "logistic" else f"{one['learning_rate']:g}, {one['batch']}"


def _tail(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"...{text[3 - most :]}"


def draw_worst(p: Array, rows: Sequence[ImageRow], picture: Callable[[str], Image.Image]) -> bytes:
    """The largest errors as tiles, each with its probability, truth, source and group."""
    y = np.array([row.label for row in rows], np.int64)
    chosen = worst(p, y)
    columns = 4
    lines = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * TILE[0], max(lines, 1) * (TILE[1] + 36)), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    for number, index in enumerate(chosen):
        left, top = number % columns * TILE[0], number // columns * (TILE[1] + 36)
        tile = picture(rows[index].digest).copy()
        tile.thumbnail((TILE[0] - 8, TILE[1] - 4))
        sheet.paste(tile, (left + 4, top + 4))
        said = f"p {p[index]:.2f}, {'roadwork' if y[index] else 'no roadwork'}"
        draw.text((left + 4, top + TILE[1] + 2), said, fill=(180, 30, 30) if (p[index] > 0.5) != bool(y[index]) else (40, 40, 40))
        draw.text((left + 4, top + TILE[1] + 16), f"{_tail(rows[index].source)} / {_tail(rows[index].group)}", fill=(90, 90, 90))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
