from hypothesis import given
from hypothesis import strategies as st

from cluster_dash_mole.collectors.gpu.wire import pack, unpack

MESSAGES = st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.floats(allow_nan=False) | st.text()))


@given(MESSAGES, st.integers(min_value=1, max_value=40))
def test_messages_come_through_however_they_are_cut(messages: list[dict[str, object]], size: int) -> None:
    sent = b"".join(map(pack, messages))
    came: list[dict[str, object]] = []
    rest = b""
    for place in range(0, len(sent), size):
        some, rest = unpack(rest + sent[place : place + size])
        came += some
    assert (came, rest) == (messages, b"")
