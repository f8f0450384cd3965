"""How a child and its parent speak: dicts by `marshal`, at a tenth of the cost of JSON: both are of one Python."""

import marshal
import struct

_LENGTH = struct.Struct("=I")


def pack(message: dict[str, object]) -> bytes:
    """Return a message as it travels: its length, and itself."""
    body = marshal.dumps(message)
    return _LENGTH.pack(len(body)) + body


def unpack(data: bytes) -> tuple[list[dict[str, object]], bytes]:
    """Return the whole messages in what has come, and the rest."""
    messages, place = [], 0
    while len(data) - place >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(data, place)
        end = place + _LENGTH.size + length
        if end > len(data):
            break
        messages.append(marshal.loads(data[place + _LENGTH.size : end]))  # noqa: S302 - of a process that we forked
        place = end
    return messages, data[place:]
