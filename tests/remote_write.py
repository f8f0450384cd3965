"""What an engine of history reads: the request of Prometheus' remote write, by protobuf's own classes."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _request() -> Any:
    """Return the class that reads and writes a request, made of the fields that the protocol names."""
    file = descriptor_pb2.FileDescriptorProto(name="write.proto", package="of_a_test", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    fields: dict[str, list[tuple[str, int, int, bool, str]]] = {
        "Label": [("name", 1, kinds.TYPE_STRING, False, ""), ("value", 2, kinds.TYPE_STRING, False, "")],
        "Sample": [("value", 1, kinds.TYPE_DOUBLE, False, ""), ("timestamp", 2, kinds.TYPE_INT64, False, "")],
        "TimeSeries": [
            ("labels", 1, kinds.TYPE_MESSAGE, True, "Label"),
            ("samples", 2, kinds.TYPE_MESSAGE, True, "Sample"),
        ],
        "WriteRequest": [("timeseries", 1, kinds.TYPE_MESSAGE, True, "TimeSeries")],
    }
    for name, of_message in fields.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, of in of_message:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, type=kind, label=label)
            if of:
                added.type_name = f".of_a_test.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("of_a_test.WriteRequest"))


REQUEST = _request()
