"""The generated protobuf module belongs to control.proto and gets on with nobody else's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from node.p2pd import control_pb2

PROTO = Path(control_pb2.__file__).with_name("control.proto")


def test_the_generated_module_is_up_to_date(tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools is not installed")
    from grpc_tools import protoc

    out = tmp_path / "set"
    include = PROTO.parents[2]
    assert protoc.main(["protoc", f"-I{include}", f"--descriptor_set_out={out}", str(PROTO)]) == 0
    (expected,) = FileDescriptorSet.FromString(out.read_bytes()).file
    committed = FileDescriptorProto.FromString(control_pb2.DESCRIPTOR.serialized_pb)
    assert _without_json_names(expected) == _without_json_names(committed)


def _without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    """protoc writes json names into descriptor sets, not into Python modules; nobody uses them."""
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")
    return file


def test_the_package_is_our_own() -> None:
    assert control_pb2.DESCRIPTOR.package == "murmura.p2pd"
    assert re.search(r"^package murmura\.p2pd;", PROTO.read_text(), re.MULTILINE)
