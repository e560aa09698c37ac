"""Full fine-tunes for `train.py`: backbone and head together, on the same splits as the probes.

The recipe is the product's in short: it starts from the probe, keeps batch statistics frozen, warms up and follows a cosine, and
sees every photograph mirrored and through the validator's challenge augmentation. With composites half of every batch are
composites; both settings take the same number of steps.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from flywheel_jobs.features import augmented, challenge_view
from flywheel_jobs.heads import Rows, fit_rows, row_weights
from flywheel_jobs.metrics import sigmoid
from flywheel_jobs.nets import feature_net
from flywheel_jobs.weights import create

if TYPE_CHECKING:
    from train import Bench, Index, Mask, Predict, Setting

EPOCHS = 2
BATCH = 16
BACKBONE_RATE, HEAD_RATE = 1e-4, 1e-3
WEIGHT_DECAY = 0.01
PROBE_STRENGTH = 1.0
VIEWED = 0.5
"""share of the images that go through the challenge augmentation"""


def fine_tunes(bench: Bench) -> dict[str, Setting]:
    """The settings."""
    return {"fine-tune": _setting(bench, False), "fine-tune + composites": _setting(bench, True)}


def _setting(bench: Bench, composites: bool) -> Setting:
    import torch

    torch.set_num_threads(bench.ctx.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preprocess = bench.extractor.backbone.preprocess
    photos = bench.photos

    def picture(digest: str) -> Image.Image:
        return Image.open(io.BytesIO(bench.ctx.objects.get(digest))).convert("RGB")

    def fit(learns: Mask, seed: int) -> Predict:
        real = np.flatnonzero(learns)
        made = bench.twins[seed]
        drawn = np.flatnonzero(learns[made.background])
        labels, groups = photos.label[real], photos.clip[real]
        rows = Rows(bench.real["final"][real, :1], labels, np.ones(len(real)), groups)
        probe = fit_rows(rows, PROBE_STRENGTH)
        weight = row_weights(labels, list(groups), np.ones(len(real))) * len(real)
        net = feature_net(create(bench.extractor.backbone.ref, bench.ctx.objects), ("final",)).eval().to(device)
        head = torch.nn.Linear(len(probe.weight), 1).to(device)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(probe.weight)[None])
            head.bias.fill_(probe.bias)
        optimiser = torch.optim.AdamW(
            [{"params": net.parameters(), "lr": BACKBONE_RATE}, {"params": head.parameters(), "lr": HEAD_RATE}], weight_decay=WEIGHT_DECAY
        )
        rates = (BACKBONE_RATE, HEAD_RATE)
        rng = np.random.default_rng((seed, 21))
        steps = EPOCHS * math.ceil(len(real) / BATCH)
        order = np.concatenate([rng.permutation(len(real)) for _ in range(EPOCHS + 1)])
        share = BATCH // 2 if composites else BATCH
        for step in range(steps):
            warm = max(1, steps // 10)
            rate = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
            for group, full in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = full * rate
            chosen = order[step * share : (step + 1) * share]
            digests, y, w = [photos.digest[real[i]] for i in chosen], labels[chosen].tolist(), weight[chosen].tolist()
            if composites:
                more = rng.choice(drawn, BATCH - share, replace=False)
                digests += [made.digest[i] for i in more]
                y, w = y + made.label[more].tolist(), w + [1.0] * len(more)
            pixels = []
            for digest in digests:
                view = picture(digest)
                if rng.random() < VIEWED:
                    view = augmented(view, rng)
                if rng.random() < 0.5:
                    view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                pixels.append(preprocess.pixels(view))
            logits = head(net(torch.from_numpy(preprocess.tensor(np.stack(pixels))).to(device))[0])[:, 0]
            truth, weights = (torch.tensor(v, dtype=torch.float32, device=device) for v in (y, w))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, weight=weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*net.parameters(), *head.parameters()], 1.0)
            optimiser.step()

        def seen(index: int, view: int) -> Image.Image:
            whole = picture(photos.digest[index])
            return whole if view == 0 else challenge_view(whole, photos.digest[index], view)

        def predict(index: Index, view: int) -> np.ndarray:
            parts = []
            with torch.inference_mode():
                for start in range(0, len(index), 32):
                    pixels = np.stack([preprocess.pixels(seen(int(i), view)) for i in index[start : start + 32]])
                    parts.append(head(net(torch.from_numpy(preprocess.tensor(pixels)).to(device))[0])[:, 0].double().cpu().numpy())
            return sigmoid(np.concatenate(parts))

        return predict

    return fit
