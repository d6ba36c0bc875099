"""Holds our protocol files against what clients were built with.

    python -m pytest tests/clients/proto_numbers.py

`proto/inference` must agree with the descriptors inside tritonclient in every name, number and type that it
defines, and reserve what it leaves out. Every field of every file of ours must have a comment.
Needs no server.
"""

import tempfile
from pathlib import Path

import grpc_tools
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from tritonclient.grpc import model_config_pb2, service_pb2

PROTO = Path(__file__).resolve().parents[2] / "proto"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
OURS = sorted(PROTO.glob("inference/*.proto")) + sorted(PROTO.glob("sconce/v1/*.proto"))


def compile_ours():
    """Our files as descriptors, comments included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ours.bin"
        arguments = ["protoc", f"-I{PROTO}", f"-I{WELL_KNOWN}", "--include_source_info", f"--descriptor_set_out={out}"]
        assert protoc.main(arguments + [str(path) for path in OURS]) == 0
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file


def compile_theirs():
    files = []
    for module in (model_config_pb2, service_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files.append(file)
    return files


def messages_of(files):
    """Full name to message, nested ones included."""
    found = {}

    def walk(prefix, message):
        name = f"{prefix}.{message.name}"
        found[name] = message
        for nested in message.nested_type:
            walk(name, nested)

    for file in files:
        for message in file.message_type:
            walk(file.package, message)
    return found


def enums_of(files):
    """Full name to {value name: number}, nested ones included."""
    found = {f"{file.package}.{enum.name}": enum for file in files for enum in file.enum_type}
    for name, message in messages_of(files).items():
        found |= {f"{name}.{enum.name}": enum for enum in message.enum_type}
    return {name: {value.name: value.number for value in enum.value} for name, enum in found.items()}


def shape_of(message, field):
    """All of a field that the wire, its JSON form and generated code depend on."""
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
    return field.name, field.number, field.type, field.type_name, field.label, oneof


FILES = compile_ours()
INFERENCE = [file for file in FILES if file.package == "inference"]
THEIR_FILES = compile_theirs()
THEIRS = messages_of(THEIR_FILES)


@pytest.mark.parametrize("name, message", messages_of(INFERENCE).items())
def test_every_field_is_as_published(name, message):
    published = {shape_of(THEIRS[name], field) for field in THEIRS[name].field}
    ours = {shape_of(message, field) for field in message.field}
    assert ours <= published


@pytest.mark.parametrize("name, message", messages_of(INFERENCE).items())
def test_every_field_left_out_is_reserved(name, message):
    ours = {field.number for field in message.field}
    left_out = [field for field in THEIRS[name].field if field.number not in ours]
    reserved = {number for span in message.reserved_range for number in range(span.start, span.end)}
    assert {field.number for field in left_out} <= reserved
    assert {field.name for field in left_out} == set(message.reserved_name)


@pytest.mark.parametrize("name, values", enums_of(INFERENCE).items())
def test_every_enum_is_as_published(name, values):
    assert values == enums_of(THEIR_FILES)[name]


def test_every_method_is_as_published():
    def methods(files):
        return {
            (service.name, method.name, method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            for file in files
            for service in file.service
            for method in service.method
        }

    ours = methods(INFERENCE)
    assert ours <= methods(THEIR_FILES)
    required = "ServerLive ServerReady ModelReady ServerMetadata ModelMetadata ModelConfig ModelInfer ModelStreamInfer"
    assert set(required.split()) <= {method for _, method, *_ in ours}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_field_and_method_has_a_comment(file):
    commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments or place.trailing_comments}
    bare = []

    def walk(path, prefix, message):
        for index, field in enumerate(message.field):
            if (*path, 2, index) not in commented:
                bare.append(f"{prefix}.{field.name}")
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                walk((*path, 3, index), f"{prefix}.{nested.name}", nested)

    for index, message in enumerate(file.message_type):
        walk((4, index), message.name, message)
    for index, service in enumerate(file.service):
        bare += [method.name for at, method in enumerate(service.method) if (6, index, 2, at) not in commented]
    assert not bare
