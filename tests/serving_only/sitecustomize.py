"""Hides packages from a Python process that has this folder in its PYTHONPATH; `tests/serving.py` says which."""

import os
import sys
from importlib.machinery import PathFinder

_HIDDEN = frozenset(os.environ.get("LORIKEET_HIDDEN_PACKAGES", "").split(","))


class _ServingOnly(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in _HIDDEN else super().find_spec(fullname, path, target)


sys.meta_path[:] = [_ServingOnly if finder is PathFinder else finder for finder in sys.meta_path]
