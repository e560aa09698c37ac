"""torchvision's functional transforms without its models.

The package's own `__init__` imports its models, their operators and torch's compiler, 5 s of CPU that no transform needs and
that every job would pay. So the transforms are imported below an empty package, which is taken away again: a later
`import torchvision` runs the real one and finds these very modules.
"""

from __future__ import annotations

import importlib.util
import sys
import types

if "torchvision" in sys.modules:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tvf
else:
    _spec = importlib.util.find_spec("torchvision")
    if _spec is None or _spec.submodule_search_locations is None:
        raise ModuleNotFoundError("torchvision is not installed: run `uv sync` in gpu-jobs")
    _package = types.ModuleType("torchvision")
    _package.__path__ = list(_spec.submodule_search_locations)
    _package.__spec__ = _spec
    sys.modules["torchvision"] = _package
    try:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as tvf
    finally:
        if sys.modules.get("torchvision") is _package:
            del sys.modules["torchvision"]

__all__ = ["InterpolationMode", "tvf"]
