"""Synthesis with neither GPU nor download: everything drawn here is drawn in code, from a seed.

Here live drawn objects (`roadwork` and `works`, `ordinary`, `figures` on a `canvas`), the reading of a photograph (`scene`),
the compositor, weather, whole rendered streets, and the jobs `synthesize` and `render`. No model, no training, and no image files.
"""
