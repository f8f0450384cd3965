import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("ours", deadline=None)  # time says nothing on a loaded machine
hypothesis.settings.load_profile("ours")

FAKE_NVML = Path(__file__).parents[2] / "tests/fake-nvml"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-goldens", action="store_true", help="rewrite the expected snapshots of tests/machines")


@pytest.fixture(autouse=True)
def log_goes_nowhere_after_a_test() -> Iterator[None]:
    """Take away what a command has set up: it would write to a closed file, and say so, at each line of later tests."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # those of pytest are kinds of their own
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LD_LIBRARY_PATH with the stand-in for NVIDIA's library, named as a driver names it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not shutil.which("make") or not compiler:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no make or no C compiler for the stand-in of NVML")
    subprocess.run(["make", "-s", "-C", FAKE_NVML, f"CC={compiler}"], check=True)
    folder = tmp_path_factory.mktemp("nvml")
    shutil.copy(FAKE_NVML / "libnvidia-ml.so.1", folder / "libnvidia-ml.so.550.90.07")
    (folder / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.550.90.07")
    return folder
