"""Makes a small real bundle in int8 for the tests of the TypeScript side, and says what Python answers with it.

`python make_bundle.py ROOT`: objects go to ROOT/objects, what Python says to ROOT/made.json. Not a test itself.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MEMBERS, make_context, snapshot_rows, train_input

from flywheel_jobs import evaluate, export, train
from flywheel_jobs.predicted import expected_reward, reward
from flywheel_jobs.spec import with_defaults


def main() -> None:
    ctx = make_context(Path(sys.argv[1]))
    rows = snapshot_rows(ctx.objects)
    manifest = ctx.objects.put_jsonl(rows)
    trained = train.run(ctx, train_input(manifest, members=MEMBERS[:1]))["trained"]
    free = {"accuracy": 1, "reward": 1}
    order = {"trained": trained, "name": "int8", "snapshot": manifest, "parent": None, "parity": manifest, "parityImages": 4}
    order |= {"parityTolerance": 1e-3, "seed": 1, "precision": "int8", "limits": {"fp16": free, "int8": free}, "calibrationImages": 8}
    bundle = export.run(ctx, with_defaults("export.input", order))["bundle"]
    judged = evaluate.run(ctx, with_defaults("evaluate.input", {"manifest": manifest, "bundle": bundle}))
    rng = np.random.default_rng(1)
    windows = []
    for length in (1, 9, 10, 60, 100, 130):
        labels = (rng.random(length) < 0.5).astype(int)
        right = rng.random(length) < 0.85
        p = np.where(right == (labels == 1), rng.uniform(0.5, 1, length), rng.uniform(0, 0.5, length))
        p[rng.random(length) < 0.1] = -1
        windows.append({"labels": labels.tolist(), "predictions": p.tolist(), "reward": reward(p, labels)})
    rates = [(1.0, 1.0), (0.95, 0.9), (0.9, 0.98), (0.7, 0.8)]
    (Path(sys.argv[1]) / "made.json").write_text(
        json.dumps(
            {
                "bundle": bundle,
                "rows": rows,
                "evaluated": {**judged, "lines": ctx.objects.get_jsonl(judged["predictions"])},
                "windows": windows,
                "expected": [{"positive": a, "negative": b, "reward": expected_reward(a, b)} for a, b in rates],
            }
        )
    )


if __name__ == "__main__":
    main()
