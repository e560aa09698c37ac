"""Leave one city out: how the heads do on a place of which they saw nothing.

Figures out of fold by clip still let a head see other photographs of the same camera, which in street data nearly tells the
label. Here whole places are left out of the training, one after the other, with everything made from their images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .heads import Head, Rows, fit_rows, vote
from .metrics import Array, sigmoid
from .objects import FileObjects
from .spec import ImageRow

Fit = Callable[[Rows, Head | None], Head]
"""another way to fit a head than the logistic one"""


def places_of(rows: Sequence[ImageRow]) -> NDArray[np.str_]:
    """The place of each row: its clip (a group of several photographs: one drive through one city), or, for photographs that
    stand alone, their source (one camera or collection). A derived image is where its group is."""
    photographs = Counter(row.group for row in rows if not row.synthetic)
    return np.array([f"clip {row.group}" if photographs[row.group] > 1 else f"source {row.source}" for row in rows])


def leave_places_out(
    rows: Sequence[ImageRow],
    learns: NDArray[np.bool_],
    judges: NDArray[np.bool_],
    tables: Sequence[Rows],
    strengths: Sequence[tuple[float | Fit, float]],
    weights: Sequence[float],
    progress: Callable[[int, int], None],
) -> tuple[list[dict[str, Any]], int]:
    """Predictions on the photographs that judge, each by the vote (`weights`) of heads that learned without its place.

    `tables` are the rows' features for each member, view 0 the photograph itself; `strengths` each member's regularisation (or its
    own way to fit) and the factor of its logits, as chosen for the training itself. Places whose absence leaves one class only are not
    judged. Returns lines {digest, label, prediction, group, source, place}, and how many places were left out.
    """
    places = places_of(rows)
    judged = sorted(set(places[judges]))
    # the whole training's head only shortens the search where the objective is convex; elsewhere it would tell of the place
    whole = [
        None if callable(strength) else fit_rows(table.take(learns), strength)
        for table, (strength, _) in zip(tables, strengths, strict=True)
    ]
    lines: list[dict[str, Any]] = []
    count = 0
    for number, place in enumerate(judged):
        inside, learn = judges & (places == place), learns & (places != place)
        if tables[0].take(learn).both_classes():
            probabilities: list[Array] = [
                sigmoid(scale * _fit(table.take(learn), strength, start).logits(table.features[inside, 0]))
                for table, (strength, scale), start in zip(tables, strengths, whole, strict=True)
            ]
            predictions = vote(probabilities, weights)
            for index, p in zip(np.flatnonzero(inside), predictions, strict=True):
                row = rows[int(index)]
                lines.append(
                    {
                        "digest": row.digest,
                        "label": row.label,
                        "prediction": round(float(p), 6),
                        "group": row.group,
                        "source": row.source,
                        "place": place,
                    }
                )
            count += 1
        progress(number + 1, len(judged))
    return sorted(lines, key=lambda line: str(line["digest"])), count


def _fit(rows: Rows, strength: float | Fit, start: Head | None) -> Head:
    return strength(rows, None) if callable(strength) else fit_rows(rows, strength, start)


def store(objects: FileObjects, lines: list[dict[str, Any]], count: int) -> dict[str, Any] | None:
    """The output's part, None where no place could be left out."""
    return {"predictions": objects.put_jsonl(lines), "n": len(lines), "places": count} if count > 0 else None
