"""A server that takes every post and does nothing with it, so that a benchmark measures who posts."""

import selectors
import socket

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{"success": true}'


def main() -> None:
    """Say where it listens, and serve until it is killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    print(f"listens on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    waiting: dict[socket.socket, int] = {}  # connections, with how many bytes of each are still to come
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
                continue
            connection = key.fileobj  # type: ignore[assignment] # only sockets are registered
            got = connection.recv(1 << 20)
            if connection not in waiting:
                head, _, _ = got.partition(b"\r\n\r\n")
                length = int(head.lower().rpartition(b"content-length: ")[2] or 0) if head else 0
                waiting[connection] = len(head) + 4 + length
            waiting[connection] -= len(got)
            if not got or waiting[connection] <= 0:
                if got:
                    connection.send(ANSWER)
                del waiting[connection]
                selector.unregister(connection)
                connection.close()


if __name__ == "__main__":
    main()
