"""The `trained` object: JSON that names everything needed to export a model, or to train on from it.

Tensors are objects of their own (safetensors); this file holds names, numbers and digests. No computation here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .backbones import Preprocess
from .errors import BadInput
from .heads import Head
from .nets import FeatureKind
from .objects import FileObjects
from .weights import BackboneRef

FORMAT = "streetvision-trained/1"


@dataclass(frozen=True)
class TrainedMember:
    """One member: a backbone, the features taken from it, and a head."""

    name: str
    ref: BackboneRef
    """where the weights are: the pretrained source, or `object:<digest>` when they were fine-tuned"""
    features: FeatureKind
    head: Head
    preprocess: Preprocess
    weight: float
    stage: str
    source: str
    """the weights it all began with, as in the member's specification"""
    weights_digest: str


@dataclass(frozen=True)
class Trained:
    """An ensemble as the train job leaves it."""

    members: tuple[TrainedMember, ...]
    calibration: dict[str, Any]
    metrics: dict[str, Any]
    snapshot: str
    parent: str | None
    seed: int
    choices: dict[str, Any] = field(default_factory=dict)
    """what training settled, so that a small retrain need not settle it again: `heads` (recipe and scale by member), `dropped` providers"""

    def save(self, objects: FileObjects) -> str:
        """Stores heads and the JSON that names them; returns its digest."""
        from safetensors.numpy import save

        members = []
        for member in self.members:
            tensors = {"weight": member.head.weight.astype(np.float64), "bias": np.array([member.head.bias], np.float64)}
            members.append(
                {
                    "name": member.name,
                    "backbone": member.ref.backbone,
                    "resolution": member.ref.resolution,
                    "weights": member.ref.weights,
                    "weightsDigest": member.weights_digest,
                    "source": member.source,
                    "features": member.features,
                    "stage": member.stage,
                    "weight": member.weight,
                    "preprocess": member.preprocess.to_json(),
                    "head": objects.put(save(tensors)),
                }
            )
        return objects.put_json(
            {
                "format": FORMAT,
                "members": members,
                "calibration": self.calibration,
                "metrics": self.metrics,
                "snapshot": self.snapshot,
                "parent": self.parent,
                "seed": self.seed,
                "choices": self.choices,
            }
        )

    @classmethod
    def load(cls, objects: FileObjects, digest: str) -> Trained:
        """Reads a `trained` object and its heads. Raises BadInput when it is none."""
        from safetensors.numpy import load

        raw = objects.get_json(digest)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise BadInput(f"object {digest} is no `trained` object ({FORMAT}). Give the `trained` digest of a train job.")
        members = []
        for value in raw["members"]:
            tensors = load(objects.get(value["head"]))
            members.append(
                TrainedMember(
                    name=value["name"],
                    ref=BackboneRef(value["backbone"], value["weights"], int(value["resolution"])),
                    features=value["features"],
                    head=Head(tensors["weight"], float(tensors["bias"][0])),
                    preprocess=Preprocess.from_json(value["preprocess"]),
                    weight=float(value["weight"]),
                    stage=value["stage"],
                    source=value["source"],
                    weights_digest=value["weightsDigest"],
                )
            )
        settled = raw.get("choices", {})
        return cls(tuple(members), raw["calibration"], raw["metrics"], raw["snapshot"], raw["parent"], int(raw["seed"]), settled)
