from cluster_dash_mole.collectors.memory import MemoryCollector, memory, parse_meminfo


def test_used_is_what_is_not_available() -> None:
    assert memory({"MemTotal": 4 * 2**20, "MemAvailable": 2**20, "SwapTotal": 2**20, "SwapFree": 2**19}) == {
        "total_gb": 4,
        "available_gb": 1,
        "used_gb": 3,
        "swap": {"total_gb": 1, "used_gb": 0.5},
    }


def test_what_the_kernel_does_not_say_is_unknown_not_zero() -> None:
    assert memory({"MemTotal": 2**20}) == {
        "total_gb": 1,
        "available_gb": None,
        "used_gb": None,
        "swap": {"total_gb": None, "used_gb": None},
    }


def test_lines_that_are_no_amounts_are_left_out() -> None:
    assert parse_meminfo("MemTotal:  12 kB\nHugePages_Total:   3\nnonsense\n") == {"MemTotal": 12}


def test_this_machine_has_memory() -> None:
    part = MemoryCollector().collect().parts["memory"]
    assert isinstance(part, dict)
    assert part["total_gb"] > part["used_gb"] > 0
