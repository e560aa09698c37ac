"""Pretrained weights: where they come from, what identifies them, and how they come into a timm model.

torch and timm are imported only inside functions: light jobs need neither.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .choice import check_resolution, chosen, is_auto, patch_of
from .context import JobContext
from .errors import BadInput, MissingWeights, UnknownBackbone, WeightsOutOfReach
from .machine import memory_gb
from .objects import FileObjects, canonical_json, sha256, write_atomic

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class BackboneRef:
    """A timm model with its weights (`package:`, `hub`, `hub@<revision>`, `none`, a path, or `object:<digest>`: trained here)."""

    backbone: str
    weights: str
    resolution: int

    @classmethod
    def of(cls, member: dict[str, Any]) -> BackboneRef:
        """From a MemberSpec of the contract; an automatic backbone is chosen for this machine. Raises BadInput when nothing fits."""
        backbone = member["backbone"]
        if is_auto(backbone):
            backbone = chosen(member, memory_gb()).name
        return cls(backbone, member["weights"], int(member["resolution"]))


def package_checkpoint(package: str) -> Path:
    """The one checkpoint file inside an installed Python package. Raises MissingWeights when there is none or more than one."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise MissingWeights(f"the package {package!r} that should carry the weights is not installed. `uv sync` installs the pinned ones.")
    root = Path(next(iter(found.submodule_search_locations)))
    files = sorted(path for pattern in ("*.pth", "*.pt", "*.safetensors") for path in root.rglob(pattern))
    if len(files) != 1:
        raise MissingWeights(
            f"the package {package!r} holds {len(files)} checkpoints, expected one. Give the path of the file as `weights`."
        )
    return files[0]


def is_hub(weights: str) -> bool:
    """Whether the weights come from the Hugging Face Hub, at a pinned revision or at its newest."""
    return weights == "hub" or weights.startswith("hub@")


def _weights_file(ref: BackboneRef, objects: FileObjects) -> Path | None:
    """The file behind the weights; None for `hub` and `none`."""
    if ref.weights.startswith("package:"):
        return package_checkpoint(ref.weights.removeprefix("package:"))
    if ref.weights.startswith("object:"):
        digest = ref.weights.removeprefix("object:")
        objects.get(digest)  # verified before use
        return objects.path(digest)
    if ref.weights == "none" or is_hub(ref.weights):
        return None
    path = Path(ref.weights)
    if not path.is_file():
        raise MissingWeights(
            f"no weights file at {path} for {ref.backbone}. "
            "Three ways: `hub` or `hub@REVISION`, `package:NAME`, or the path of a checkpoint (`none`: random, for tests only)."
        )
    return path


def weights_digest(ref: BackboneRef, ctx: JobContext) -> str:
    """SHA-256 that identifies the weights: of the file, or of name and seed for random ones, or of the tensors for `hub`."""
    file = _weights_file(ref, ctx.objects)
    if file is not None:
        return sha256(file.read_bytes())
    if ref.weights == "none":
        return sha256(canonical_json(["random", ref.backbone]))
    alias = ctx.cache_dir / "graphs" / f"hub-{sha256(canonical_json([ref.backbone, ref.weights, ref.resolution]))[:24]}.json"
    if alias.is_file():
        return str(json.loads(alias.read_text())["digest"])
    digest = state_digest(create(ref, ctx.objects).state_dict())
    write_atomic(alias, canonical_json({"backbone": ref.backbone, "digest": digest}))
    return digest


def state_digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        if path.suffix == ".safetensors" or "." not in path.name:  # objects carry no suffix
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MissingWeights(
            f"the weights {path} cannot be read: {type(error).__name__}: {error}. Give a safetensors or PyTorch checkpoint."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return cast("dict[str, torch.Tensor]", state)


def fit_state(state: dict[str, torch.Tensor], model: nn.Module, what: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the model's own names.

    Equal names are taken as they are. Otherwise both lists must run in step: as many tensors, and at each place the same
    last name (`weight`, `running_mean` ...) and shape; that is how the original EfficientNet-Lite naming maps onto timm's.
    Raises MissingWeights naming the first place where they part.
    """
    own = model.state_dict()
    state = fit_positions(state, model)
    if own.keys() <= state.keys():
        return {name: state[name] for name in own}
    if len(own) != len(state):
        raise MissingWeights(
            f"{what} holds {len(state)} tensors, the model {len(own)}; the names differ too. Are these the weights of this backbone?"
        )
    for (name, tensor), (theirs, given) in zip(own.items(), state.items(), strict=True):
        if name.rsplit(".", 1)[-1] != theirs.rsplit(".", 1)[-1] or tensor.shape != given.shape:
            raise MissingWeights(
                f"{what} does not fit: {theirs} {tuple(given.shape)} stands where the model has {name} {tuple(tensor.shape)}."
            )
    return dict(zip(own, state.values(), strict=True))


def fit_positions(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The checkpoint with its positional embedding resampled to the model's grid (bicubic, prefix tokens left alone), where one
    of another resolution was trained with. Anything else is returned as it is."""
    own, given = getattr(model, "pos_embed", None), state.get("pos_embed")
    if own is None or given is None or own.shape == given.shape or given.shape[-1] != own.shape[-1]:
        return state
    from timm.layers.pos_embed import resample_abs_pos_embed

    m = cast("Any", model)
    prefix = 0 if getattr(m, "no_embed_class", False) else int(getattr(m, "num_prefix_tokens", 0))
    resampled = resample_abs_pos_embed(given, new_size=list(m.patch_embed.grid_size), num_prefix_tokens=prefix)
    return {**state, "pos_embed": resampled}


def create(ref: BackboneRef, objects: FileObjects, fused: bool = False) -> nn.Module:
    """The timm model with its weights, no classifier, in eval mode. `fused`: attention kernels that are fast on a GPU but do not
    export for every backbone.

    Raises UnknownBackbone, BadInput (resolution), MissingWeights or WeightsOutOfReach.
    """
    import timm
    import torch
    from timm.layers.config import set_fused_attn

    set_fused_attn(fused)
    if not timm.is_model(ref.backbone.split(".", 1)[0]):
        raise UnknownBackbone(f"timm knows no model {ref.backbone!r}. `timm.list_models()` lists the names.")
    check_resolution(ref.backbone, ref.resolution, patch_of(ref.backbone))
    config = timm.get_pretrained_cfg(ref.backbone)
    extra: dict[str, Any] = {"img_size": ref.resolution} if config is not None and config.fixed_input_size else {}
    file = _weights_file(ref, objects)
    if is_hub(ref.weights):
        _, _, revision = ref.weights.partition("@")
        if revision:
            where = config.hf_hub_id if config is not None else None
            if not where:
                raise MissingWeights(f"timm knows no place on the hub for {ref.backbone}: give a path or `package:NAME` as its weights.")
            extra["pretrained_cfg_overlay"] = {"hf_hub_id": f"{where}@{revision}"}
        try:
            return _sized(ref, timm.create_model(ref.backbone, pretrained=True, num_classes=0, **extra))
        except BadInput:
            raise
        except Exception as error:
            raise WeightsOutOfReach(
                f"the weights of {ref.backbone} could not be fetched from the Hugging Face Hub: "
                f"{type(error).__name__}: {str(error)[:300]}. "
                "Three ways on: the hub: let this machine reach huggingface.co (HF_TOKEN; HF_ENDPOINT for a mirror; HF_HOME for a filled "
                "cache) and pin a revision by `hub@REVISION`; a path: download the checkpoint elsewhere and give its path as the member's "
                "`weights`; a package: `package:NAME` of an installed Python package that carries the checkpoint. "
                "The demo preset needs no download."
            ) from error
    if file is None:
        with torch.random.fork_rng(devices=[]):
            # the name, not the job's seed: random backbones are one thing, so that their cached features stay valid
            torch.manual_seed(int(sha256(ref.backbone.encode())[:8], 16))
            model = timm.create_model(ref.backbone, pretrained=False, num_classes=0, **extra)
            _make_lively(model)
            return _sized(ref, model)
    state = _read_state(file)
    if ref.weights.startswith("object:"):
        model = timm.create_model(ref.backbone, pretrained=False, num_classes=0, **extra)
        model.load_state_dict(fit_state(state, model, f"object {ref.weights}"))
        return _sized(ref, model)
    # an original checkpoint brings its classifier: fit it whole, so that every tensor is accounted for, then drop it
    model = timm.create_model(ref.backbone, pretrained=False, **extra)
    headless = timm.create_model(ref.backbone, pretrained=False, num_classes=0, **extra)
    if headless.state_dict().keys() <= state.keys():
        model = headless
    model.load_state_dict(fit_state(state, model, f"the checkpoint {file.name}"))
    cast("Any", model).reset_classifier(0)
    return _sized(ref, model)


def _sized(ref: BackboneRef, model: nn.Module) -> nn.Module:
    """The model in eval mode, once its patch size is known to divide the resolution. Raises BadInput."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple):
        check_resolution(ref.backbone, ref.resolution, int(patch[0]))
    return model.eval()


def _make_lively(model: nn.Module) -> None:
    """Random LayerScale starts near 0, which would hide every layer behind it: give it a size that shows."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("ls1.gamma", "ls2.gamma", ".gamma")):
                parameter.uniform_(0.5, 1.0)
