"""Count the calls into NVML of the GPU collector's child: prints those of 60 rounds a second apart, after the first.

python bench/nvml_calls.py, with the stand-in's environment.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import pynvml

from cluster_dash_mole.collectors.gpu import child
from cluster_dash_mole.collectors.gpu.processes import ProcessTable

ROUNDS = 60


def main() -> None:
    """Count."""
    calls = 0

    def counting(function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            nonlocal calls
            calls += 1
            return function(*arguments)

        return call

    class Counted:
        """A library whose functions count."""

        def __init__(self, name: str) -> None:
            self._library = ctypes.CDLL(name)

        def __getattr__(self, name: str) -> Callable[..., int]:
            return counting(getattr(self._library, name))

    pointer_of: Callable[[str], Any] = pynvml._nvmlGetFunctionPointer
    pynvml._nvmlGetFunctionPointer = lambda name: counting(pointer_of(name))
    now = 0.0
    reader = child.Reader(ProcessTable(), load=Counted, clock=lambda: now)
    reader.answer(lambda message: None)
    first, calls = calls, 0
    for _ in range(ROUNDS):
        now += 1.0
        reader.answer(lambda message: None)
    print(f"{first} {calls / ROUNDS:.2f}")


if __name__ == "__main__":
    main()
