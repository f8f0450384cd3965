from cluster_dash_mole.collectors.gpu.changes import CALM_SECONDS, Changes
from cluster_dash_mole.snapshot import Event


def gpus(*entries: dict[str, object]) -> dict[str, object]:
    return {str(place): {"index": place, "uuid": f"GPU-{place}", **entry} for place, entry in enumerate(entries)}


def kinds(events: list[Event]) -> list[tuple[str, int | None]]:
    return [(event.kind, event.gpu) for event in events]


def test_what_is_so_at_first_sight_is_no_event_but_its_end_is() -> None:
    changes = Changes()
    assert changes.see(gpus({"error": "NVML 15: lost"}, {}), at=0) == []
    (back,) = changes.see(gpus({}, {}), at=300)
    assert (back.kind, back.gpu, back.text) == ("gpu_back", 0, "can be read again, after 5 min")


def test_trouble_is_told_when_it_begins_and_when_it_ends() -> None:
    changes = Changes()
    changes.see(gpus({}, {}), at=0)
    assert kinds(changes.see(gpus({}, {"error": "NVML 15: lost"}), at=5)) == [("gpu_lost", 1)]
    assert changes.see(gpus({}, {"error": "NVML 16: needs a reset"}), at=10) == []
    assert kinds(changes.see(gpus({}, {}), at=15)) == [("gpu_back", 1)]
    silent = "GPU 0: no answer since 02:14 UTC"
    (event,) = changes.see(gpus({"error": silent}, {}), at=20)
    assert (event.kind, event.text) == ("gpu_error", "no answer since 02:14 UTC")


def test_a_gpu_that_is_no_longer_counted_is_lost_once_and_may_come_back_under_another_index() -> None:
    changes = Changes()
    changes.see(gpus({}, {}, {}), at=0)
    rest: dict[str, object] = {"0": {"index": 0, "uuid": "GPU-0"}, "1": {"index": 1, "uuid": "GPU-2"}}
    assert kinds(changes.see(rest, at=5)) == [("gpu_lost", 1)]
    assert changes.see(rest, at=10) == []
    assert kinds(changes.see(gpus({}, {}, {}), at=15)) == [("gpu_back", 1)]


def test_a_driver_that_fails_is_one_event_and_its_return_another() -> None:
    changes = Changes()
    assert changes.fail("CD401", at=0) == []  # it never worked: that is a state, nothing that happened
    changes.see(gpus({}, {}), at=1)
    assert kinds(changes.fail("CD401 driver not loaded", at=2)) == [("gpu_error", None)]
    assert changes.fail("CD401 driver not loaded", at=3) == []
    assert kinds(changes.see(gpus({}, {}), at=4)) == [("gpu_back", None)]


def test_throttling_by_fits_and_starts_is_one_throttling() -> None:
    changes = Changes()
    hot: dict[str, object] = {"throttle_reasons": ["sw_power_cap", "hw_thermal_slowdown"], "temperature_c": 91}
    cool: dict[str, object] = {"throttle_reasons": ["sw_power_cap"]}
    assert changes.see(gpus(cool), at=0) == []
    (began,) = changes.see(gpus(hot), at=5)
    assert (began.kind, began.text) == ("throttling_began", "slowed down at 91 °C: hw_thermal_slowdown")
    for at in range(10, 200, 10):
        assert changes.see(gpus(cool if at % 20 else hot), at=at) == []
    (ended,) = changes.see(gpus(cool), at=180 + CALM_SECONDS)
    assert (ended.kind, ended.text) == ("throttling_ended", "no longer slowed down, after 3 min")
