"""Fine-tunes of a training's members: which of them, from what they start, and on which images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .context import JobContext
from .features import extractor_pool
from .finetune import Images, Job, Score, fine_tune, score_of
from .heads import Head
from .member import CALIBRATE_VIEWS, Member, labels_of, scale_of
from .metrics import measure, sigmoid
from .objects import canonical_json, sha256
from .parent import Parent
from .sampling import Plan
from .schedules import Settings
from .spec import ImageRow
from .votes import share_worse


class FineTunes:
    """The fine-tunes of one training."""

    def __init__(
        self,
        ctx: JobContext,
        job_input: dict[str, Any],
        kept: list[ImageRow],
        held: list[ImageRow],
        parent: Parent | None,
        settled: bool = False,
    ) -> None:
        """`settled`: a small retrain, which judges by nothing that it would have to compute for that alone."""
        sampling, self._seed = job_input["sampling"], int(job_input["seed"])
        self._views, self._settled = int(job_input["views"]), settled
        self._ctx, self._input, self._kept, self._held = ctx, job_input, kept, held
        groups, weights = [row.group for row in kept], np.array([row.weight for row in kept])
        self._plan = Plan.of(sampling["kind"], labels_of(kept), groups, weights, self._seed)
        self._fresh = np.array([parent is not None and row.digest in parent.fresh for row in kept])
        self._pool = extractor_pool(ctx)

    def goes_on(self, member: Member) -> bool:
        """Whether the member will be fine-tuned straight from its parent's weights and head.

        No head is then fitted before, and no image that the parent learned from needs features of the parent's backbone.
        """
        if not member.fine_tuned or member.start is None or self._idle(member):
            return False
        mode, gate = self._mode(member), float(self._input["fineTune"]["gate"])
        return bool(mode == "always" or (mode == "auto" and self._accuracy(member, member.start) < gate))

    def run(self, member: Member, tuned: list[ImageRow]) -> bool:
        """Fine-tunes the member from its head, where that is asked for; False when the member stays as it was. `tuned`: the
        calibration images."""
        wish, again = self._input["fineTune"], self._input["incremental"]
        assert member.head is not None
        if self._mode(member) == "never":
            member.note = "fine-tune switched off"
            return False
        accuracy = self._accuracy(member, member.head)
        if self._mode(member) == "auto" and accuracy >= float(wish["gate"]):
            member.note = f"probe holds the gate: validate accuracy {accuracy:.3f} >= {wish['gate']:.3f}"
            return False
        if self._idle(member):
            member.note = "nothing new to fine-tune on: the parent's weights stand"
            return False
        plan, settings, said = self._plan, Settings.of(wish, float(self._input["sampling"]["focalGamma"])), ""
        if member.fine_tuned and again["replay"] is not None:  # the parent was fine-tuned on the rest already
            plan, settings = plan.incremental(self._fresh, float(again["replay"])), replace(settings, epochs=int(again["epochs"]))
            said = f"; from the parent's checkpoint, {int(self._fresh.sum())} new images with {plan.replay} old ones an epoch"
        job = Job(
            name=member.name,
            ref=member.ref,
            kind=member.kind,
            preprocess=member.extractor.backbone.preprocess,
            probe=member.head,
            train=Images([row.digest for row in self._kept], labels_of(self._kept)),
            validate=Images([row.digest for row in self._held], labels_of(self._held), [row.group for row in self._held]),
            plan=plan,
            augmentation=self._input["augmentation"],
            loader=self._input["loader"],
            settings=settings,
            seed=self._seed,
            mark=sha256(canonical_json([member.ref.weights, self._input])),
            known=member.head.logits(member.table(self._held, 0, "validate"))[:, 0],
            goes_on=member.head is member.start,
        )
        outcome = fine_tune(self._ctx, job)
        member.note, member.facts, member.events = outcome.note + said, outcome.facts, outcome.events
        member.history["fineTune"] = outcome.history
        if outcome.ref is None or outcome.head is None:
            return False
        before = replace(member)
        member.ref, member.extractor, member.stage = outcome.ref, self._pool(outcome.ref), "fine-tune"
        if outcome.validated is not None:
            member.extractor.keep(outcome.validated.digests, outcome.validated.final, outcome.validated.mid)
        logits = outcome.head.logits(member.table(tuned, CALIBRATE_VIEWS, "features for the calibration"))
        member.head = outcome.head.scaled(scale_of(logits, tuned, shift=False)[0], 0.0)
        lost = None if self._settled else self._worse_on_views(member, before)
        if lost is not None:
            member.ref, member.extractor, member.stage, member.head = before.ref, before.extractor, before.stage, before.head
            member.note = f"fine-tune thrown away, {lost}; on the photographs alone: {outcome.note.removeprefix('fine-tuned: ')}{said}"
            return False
        return True

    def fall_back(self, member: Member, views: int, tuned: list[ImageRow]) -> None:
        """What a member has whose fine-tune from its parent was thrown away: a head on the parent's backbone that learned from old and
        new images, or the parent's own where that one is rather worse."""
        assert member.start is not None
        table, truth = member.table(self._held, 0, "validate")[:, 0], labels_of(self._held)
        member.fit(self._kept, views, tuned)
        assert member.head is not None
        now, before = member.head.logits(table), member.start.logits(table)
        worse = share_worse(now, before, truth, [row.group for row in self._held], self._seed)
        if worse < 0.5:
            member.note += "; a new head on the parent's backbone learned from old and new images instead"
        else:
            member.head = member.start
            member.note += f"; a new head on the parent's backbone was worse in {worse:.0%} of resamples: the parent's weights stand"

    def _worse_on_views(self, member: Member, before: Member) -> str | None:
        """What a fine-tune, which was judged on the photographs themselves, loses against its start on all of `validate` with the
        challenge views of each, which is what validators send; None when nothing. Either is judged as it would be served. The vote needs
        these features anyway."""
        labels = np.repeat(labels_of(self._held), 1 + self._views)

        def score(one: Member) -> Score:
            assert one.head is not None
            return score_of(one.head.logits(one.table(self._held, self._views, "validate")).reshape(-1), labels)

        now, then = score(member), score(before)
        if now.brier <= then.brier:
            return None
        return (
            f"worse with the challenge views: accuracy {now.accuracy:.3f}, Brier {now.brier:.4f}; "
            f"before {then.accuracy:.3f}, {then.brier:.4f}"
        )

    def _mode(self, member: Member) -> str:
        return str(member.spec.get("fineTune") or self._input["fineTune"]["mode"])

    def _idle(self, member: Member) -> bool:
        """Whether the parent was fine-tuned on everything there is."""
        return member.fine_tuned and self._input["incremental"]["replay"] is not None and not self._fresh.any()

    def _accuracy(self, member: Member, head: Head) -> float:
        found = sigmoid(head.logits(member.table(self._held, 0, "validate"))[:, 0])
        return float(measure(found, labels_of(self._held))["accuracy"])
