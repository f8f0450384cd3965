import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster_dash_mole.pick import candidates, choose, differ, parse_size, variable, why_none
from cluster_dash_mole.snapshot import gpu_error

HERE = Path(__file__).parent


def gpu(index: int, **fields: object) -> dict[str, object]:
    entry = {"index": index, "name": "H100", "uuid": f"GPU-{index}", "total_mem": 80000, "used_mem": 4, "gpu_util": 0}
    return {**entry, "users": {}, **fields}


def picked(*gpus: dict[str, object], count: int = 1, min_free_mib: float = 0) -> list[int] | str:
    chosen = choose(candidates({str(each["index"]): each for each in gpus}), count=count, min_free_mib=min_free_mib)
    return chosen if isinstance(chosen, str) else [each.index for each in chosen]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"error": "NVML 15: lost"}, "NVML 15: lost"),
        ({"used_mem": 1601}, "1601 MiB in use"),
        ({"total_mem": 8000, "used_mem": 513}, "513 MiB in use"),
        ({"gpu_util": 5}, "5 % busy"),
        ({"users": {"ada": {"7": {"type": "C"}}, "bob": {"8": {"type": "M"}}}}, "used by ada, bob"),
        ({"users": None, "gpu_util": None}, "nothing is known of its use"),
        ({"mig": {"instances": []}}, "is divided by MIG: give the uuid of an instance"),
    ],
)
def test_a_gpu_that_is_not_free_is_left_out_and_the_words_say_why(fields: dict[str, object], why: str) -> None:
    assert picked(gpu(0, **fields), gpu(1)) == [1]
    assert picked(gpu(0, **fields), gpu(1), count=2) == f"2 GPUs are wanted, 1 of 2 fit\n  GPU 0: {why}"


@pytest.mark.parametrize(
    "fields",
    [
        {"used_mem": 1600},  # 2 % of its memory
        {"total_mem": 8000, "used_mem": 512},
        {"gpu_util": 4.9},
        {"users": {"root": {"7": {"type": "G"}}}},
        {"used_mem": None, "total_mem": None},  # unified memory, and no process
    ],
)
def test_what_a_desktop_or_a_driver_takes_leaves_a_gpu_free(fields: dict[str, object]) -> None:
    assert picked(gpu(0, **fields)) == [0]


def test_the_gpus_with_the_least_to_spare_are_chosen_in_the_drivers_order() -> None:
    gpus = [gpu(0), gpu(1, total_mem=40000), gpu(2, total_mem=20000), gpu(3, total_mem=40000)]
    assert picked(*gpus, count=2, min_free_mib=30000) == [1, 3]
    assert picked(*gpus, count=3, min_free_mib=0) == [1, 2, 3]


def test_memory_that_is_not_known_does_not_pass_for_enough() -> None:
    assert picked(gpu(0, total_mem=None), min_free_mib=1) == "1 GPU is wanted, 0 of 1 fit\n  GPU 0: 0 MiB free"


@pytest.mark.parametrize(("text", "mib"), [("20G", 20480), ("1.5T", 1572864), ("512MiB", 512), ("1048576", 1)])
def test_a_size_is_in_powers_of_two(text: str, mib: float) -> None:
    assert parse_size(text) == mib


@pytest.mark.parametrize("text", ["", "G", "-1G", "20X", "1e3"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="expected one such as 20G"):
        parse_size(text)


def test_gpus_of_several_models_are_named_by_uuid_as_cuda_counts_them_otherwise() -> None:
    assert differ({"0": gpu(0), "1": gpu(1, name="A100")})
    assert not differ({"0": gpu(0), "1": gpu(1)})
    chosen = candidates({"0": gpu(0), "2": gpu(2)})
    assert variable(chosen, by_uuid=False) == "CUDA_VISIBLE_DEVICES=0,2"
    assert variable(chosen, by_uuid=True) == "CUDA_VISIBLE_DEVICES=GPU-0,GPU-2"


def test_why_there_is_no_gpu_is_in_the_drivers_words() -> None:
    assert why_none(gpu_error("CD401 driver not loaded")) == "CD401 driver not loaded"
    assert why_none({}) == "there is no NVIDIA GPU on this host"
    assert candidates(gpu_error("CD401 driver not loaded")) == []


def pick(nvml_folder: Path, folder: Path, conf: str, *options: str) -> "subprocess.CompletedProcess[str]":
    (folder / "nvml.conf").write_text(conf)
    environ = {"LD_LIBRARY_PATH": str(nvml_folder), "FAKE_NVML_CONFIG": str(folder / "nvml.conf")}
    command = [sys.executable, "-m", "cluster_dash_mole", "pick", *options]
    return subprocess.run(
        command, env={**os.environ, **environ}, cwd=HERE.parent, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_prints_the_variable_and_nothing_else(nvml_folder: Path, tmp_path: Path) -> None:
    conf = f"gpus = 6\ngpu.0-1.util_gpu = 80\ngpu.3.memory_used_mib = 70000\nproc 4 {os.getpid()} 100 C\n"
    done = pick(nvml_folder, tmp_path, conf, "-n", "2", "--min-free", "20G")
    assert (done.returncode, done.stdout, done.stderr) == (0, "CUDA_VISIBLE_DEVICES=2,5\n", "")
    assert "GPU-" in pick(nvml_folder, tmp_path, conf, "--uuid").stdout


def test_the_command_says_on_stderr_why_there_are_not_enough(nvml_folder: Path, tmp_path: Path) -> None:
    done = pick(nvml_folder, tmp_path, "gpus = 2\nutil_gpu = 80\n", "-n", "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "2 GPUs are wanted, 0 of 2 fit\n  GPU 0: 80 % busy\n  GPU 1: 80 % busy\n"
    assert pick(nvml_folder, tmp_path, "fault nvmlInit* DRIVER_NOT_LOADED\n").stderr.startswith("CD401")
    assert pick(nvml_folder, tmp_path, "gpus = 2\n", "--min-free", "lots").returncode == 2
