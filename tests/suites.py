"""The server's own suites, run again on real parts: their modules lie in no package, so they are loaded by path."""

import importlib.util
import sys
from itertools import count
from pathlib import Path
from types import ModuleType

from tests.processes import TOP

_NUMBERS = count()


def load(folder: str, name: str) -> ModuleType:
    """Load a module of the server's tests, `name` in `folder`; each call gives one of its own."""
    path = Path(TOP, "cluster-dash-server", "tests", folder, f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"suite_{next(_NUMBERS)}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
