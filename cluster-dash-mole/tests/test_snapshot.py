import json
import math

from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_mole.snapshot import Outcome, Snapshot, clean, gpu_error, within


def snapshot(boot_id: str | None = "b", seq: int | None = 7) -> Snapshot:
    return Snapshot(
        hostname="gpu01",
        timestamp=1.5,
        interval_seconds=5,
        machine_id=None,
        boot_id=boot_id,
        seq=seq,
        parts={"cpu": {}, "gpu": {}},
        collectors={"cpu": Outcome(ok=False, seconds=0.1, error="no")},
    )


def test_a_document_has_the_envelope_the_parts_and_how_the_collectors_fared() -> None:
    assert snapshot().document() == {
        "schema_version": 1,
        "hostname": "gpu01",
        "timestamp": 1.5,
        "boot_id": "b",
        "seq": 7,
        "interval_seconds": 5,
        "cpu": {},
        "gpu": {},
        "collectors": {"cpu": {"ok": False, "seconds": 0.1, "error": "no"}},
    }


def test_what_is_unknown_of_the_envelope_is_absent() -> None:
    assert not {"boot_id", "seq", "machine_id"} & set(snapshot(boot_id=None, seq=None).document())


def test_gpus_that_cannot_be_read_have_the_shape_of_the_first_version() -> None:
    entry = gpu_error("why")["gpu_error"]
    assert isinstance(entry, dict)
    assert (entry["name"], entry["uuid"], entry["users"], entry["error"]) == ("error", "none", {}, "why")


def test_a_figure_out_of_its_range_is_unknown() -> None:
    assert within(0, 0, 100) == 0
    assert within(100, 0, 100) == 100
    assert [within(value, 0, 100) for value in (101, -1, math.nan, math.inf, None)] == [None] * 5


@given(st.text(alphabet=st.characters()))
def test_clean_text_can_be_encoded_and_shown(text: str) -> None:
    shown = clean(text, 100)
    assert shown.isprintable()
    assert json.loads(json.dumps(shown).encode()) == shown
    shown.encode()
    assert len(shown) <= 100
