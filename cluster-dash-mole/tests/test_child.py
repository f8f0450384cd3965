import pytest

from cluster_dash_mole.collectors.gpu.child import parse_kernel_driver, parse_library_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Tue Mar  5 22:42:15 UTC 2024\n", "535.161.08"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.90.07  Release Build\n", "550.90.07"),
        ("", None),
    ],
)
def test_the_kernels_driver_is_read_in_its_closed_and_open_forms(text: str, version: str | None) -> None:
    assert parse_kernel_driver(text) == version


def test_the_librarys_version_is_that_of_the_loaded_file() -> None:
    maps = "7f00-7f01 r-xp 00000000 08:01 123   /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.90.07\n"
    assert parse_library_version(maps) == "550.90.07"
    assert parse_library_version(maps.replace(".550.90.07", ".1")) is None
