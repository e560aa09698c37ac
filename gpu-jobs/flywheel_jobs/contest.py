"""Grouped cross-validation on real images: which head, and which generators' images help. Nothing is trained here for keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .context import JobContext
from .errors import BadInput
from .heads import Judged, group_folds, out_of_fold, vote
from .member import Member, labels_of
from .recipes import Logistic, Recipe, choose_recipe
from .spec import ImageRow
from .unseen import leave_places_out, store
from .votes import measure_views, prescribed, share_above

HARM = 0.001
"""a provider is left out when the Brier score with it is worse by more than this ..."""
HARM_CONFIDENCE = 2 / 3
"""... in at least this share of bootstrap resamples by group"""


class Contest:
    """Grouped cross-validation on real images: what learns may change, what judges stays the same.

    Judges are real images of `train` and `validate` with a label that is no guess. An image's fold is its group's, and a
    derived image has its parents' group, so that whatever was made from an image is out when that image judges.
    """

    def __init__(
        self, ctx: JobContext, members: list[Member], learned: list[ImageRow], held: list[ImageRow], job_input: dict[str, Any]
    ) -> None:
        seed, views, folds = int(job_input["seed"]), int(job_input["views"]), int(job_input["folds"])
        self._ctx, self._members, self._seed = ctx, members, seed
        self._head, self._gamma = job_input["head"], float(job_input["sampling"]["focalGamma"])
        self._images = sorted([*learned, *held], key=lambda row: row.digest)
        self._is_learned = np.isin([row.digest for row in self._images], [row.digest for row in learned])
        self._judges = np.array(
            [not row.synthetic and row.pool in ("train", "validate") and row.truth in ("truth", "verified") for row in self._images]
        )
        if not self._judges.any():  # nothing surer at hand
            self._judges = np.array([not row.synthetic for row in self._images])
        self._provider = np.array([row.provider or "" for row in self._images])
        labels, groups = labels_of(self._images), [row.group for row in self._images]
        possible = min(len({g for g, y in zip(groups, labels, strict=True) if y == label}) for label in (0, 1))
        if possible < 2:
            raise BadInput(f"a class stands in {possible} group only: nothing can be chosen by folds. Import more sources.")
        self._fold = group_folds(groups, labels.tolist(), min(folds, possible), seed)
        self._tables = [member.rows(self._images, views, "contest") for member in members]
        self._vote = prescribed(members) or [1 / len(members)] * len(members)
        self.everyone = np.ones(len(self._images), bool)

    def drop(self, providers: set[str]) -> None:
        """Leaves these providers' images out from now on."""
        self.everyone &= ~np.isin(self._provider, sorted(providers))

    def kept(self) -> list[ImageRow]:
        """The learned rows that are still in."""
        return [row for row, keep in zip(self._images, self.everyone & self._is_learned, strict=True) if keep]

    def choose(self, learns: NDArray[np.bool_]) -> list[tuple[Recipe, Judged, list[dict[str, Any]]]]:
        """How each member's head is fitted, the out-of-fold logits behind it, and what was compared."""
        chosen = []
        for member, table in zip(self._members, self._tables, strict=True):

            def told(done: int, total: int, name: str = member.name) -> None:
                self._ctx.progress.step("regularisation", done, total, "settings", name)

            found = choose_recipe(table, self._fold, self._head, self._gamma, self._seed, self._judges, learns, told)
            chosen.append(found)
        return chosen

    def leave_places_out(self, kept: list[ImageRow]) -> dict[str, Any] | None:
        """What the heads say of places that they saw nothing of, see `unseen`."""
        learns = np.isin([row.digest for row in self._images], [row.digest for row in kept])

        def told(done: int, total: int) -> None:
            self._ctx.progress.step("places left out", done, total, "places")
            self._ctx.progress.check()

        recipes = [(member.recipe, member.scale) for member in self._members if member.recipe is not None]
        chosen = [(recipe.strength if isinstance(recipe, Logistic) else recipe, scale) for recipe, scale in recipes]
        return store(self._ctx.objects, *leave_places_out(self._images, learns, self._judges, self._tables, chosen, self._vote, told))

    def ablate(self, found_heads: list[tuple[Recipe, Judged, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        """Every provider's images in and out of the training, judged on the same real images by the members' vote (the recipe's, or
        equal).

        A provider is left out when the Brier score with it is worse by more than HARM and the paired bootstrap by group
        agrees in HARM_CONFIDENCE of its resamples.
        """
        providers = sorted({str(name) for name in self._provider[self._is_learned]} - {""})
        p_with = vote([judged.probabilities() for _, judged, _ in found_heads], self._vote)
        rows = found_heads[0][1].rows
        found = []
        for number, provider in enumerate(providers):
            without = self.everyone & (self._provider != provider)
            votes = []
            for table, (recipe, _, _) in zip(self._tables, found_heads, strict=True):
                if not table.take(without).both_classes():
                    break
                votes.append(out_of_fold(table, self._fold, recipe, self._judges, without).probabilities())
                self._ctx.progress.check()
            self._ctx.progress.step("ablation", number + 1, len(providers), "providers", provider)
            if len(votes) < len(self._members):
                whole = measure_views(p_with, rows.labels)
                found.append(
                    {
                        "provider": provider,
                        "n": len(rows.labels),
                        "with": whole,
                        "without": whole,
                        "kept": True,
                        "reason": "a class comes from it alone",
                    }
                )
                continue
            p_without = vote(votes, self._vote)
            harm = ((p_with - rows.labels[:, None]) ** 2).mean(1) - ((p_without - rows.labels[:, None]) ** 2).mean(1)
            surely = share_above(harm, rows.groups, self._seed)
            kept = not (harm.mean() > HARM and surely >= HARM_CONFIDENCE)
            verb = "improves" if harm.mean() < 0 else "worsens"
            reason = f"{verb} the Brier score by {abs(harm.mean()):.4f}, worse in {surely:.0%} of resamples by group"
            found.append(
                {
                    "provider": provider,
                    "n": len(rows.labels),
                    "with": measure_views(p_with, rows.labels),
                    "without": measure_views(p_without, rows.labels),
                    "kept": kept,
                    "reason": reason if kept else f"left out: {reason}",
                }
            )
        return found
