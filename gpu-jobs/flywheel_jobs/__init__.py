"""The heavy jobs of the flywheel: images in, manifests, votes and model bundles out.

Here live the jobs behind `flywheel-job run SPEC.json` and what they share (objects, progress, features).
No orchestration, no catalog, no network service: a job sees its spec, the object store and its own folder.
"""

__version__ = "0.1.0"
