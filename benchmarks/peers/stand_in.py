"""Modules of peers that cannot be installed beside this torch and that the measured code never calls."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType


class Anything(type):
    """Any attribute is another empty class: enough for what a module does with names while it is imported."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module below one name, each of them empty."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] != self.name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: getattr(Anything("Anything", (), {}), name)


def without(name: str) -> list[str]:
    """Put an empty module where ``name`` is not installed; what was done, for the page."""
    if importlib.util.find_spec(name) is not None:
        return []
    sys.meta_path.append(Empty(name))
    return [f"{name} replaced by an empty module"]
