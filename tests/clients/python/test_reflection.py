"""What grpcurl does without proto files: list, describe, call, and show an error's details. All over reflection.

The two versions of the reflection protocol have the same messages under two service names.
"""

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

PATIENCE_S = 30
PROTOCOLS = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
INFERENCE = ["sconce.v1.Inference", "inference.GRPCInferenceService", "grpc.health.v1.Health"]


class Reflection:
    """A client that knows nothing but the reflection protocol itself."""

    def __init__(self, channel, protocol):
        self.channel = channel
        self.ask_stream = channel.stream_stream(
            f"/{protocol}/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        self.pool = descriptor_pool.DescriptorPool()
        self.known = set()

    def ask(self, **question):
        [answer] = self.ask_stream(iter([ServerReflectionRequest(**question)]), timeout=PATIENCE_S)
        return answer

    def services(self):
        return {service.name for service in self.ask(list_services="").list_services_response.service}

    def learn(self, **question):
        """Puts the file that answers the question into the pool, what it imports first."""
        answer = self.ask(**question)
        assert answer.WhichOneof("message_response") == "file_descriptor_response", answer
        received = [descriptor_pb2.FileDescriptorProto.FromString(each) for each in answer.file_descriptor_response.file_descriptor_proto]
        self.add({file.name: file for file in received}, received)

    def add(self, received, files):
        for file in files:
            if file.name in self.known:
                continue
            self.known.add(file.name)
            for name in file.dependency:
                if name in received:
                    self.add(received, [received[name]])
                elif name not in self.known:
                    self.learn(file_by_filename=name)
            self.pool.Add(file)

    def message(self, name):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))

    def call(self, service, method, request):
        """One unary call with JSON in and JSON out."""
        self.learn(file_containing_symbol=service)
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        given = json_format.ParseDict(request, self.message(found.input_type.full_name)())
        stub = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.message(found.output_type.full_name).FromString,
        )
        return json_format.MessageToDict(stub(given, timeout=PATIENCE_S), preserving_proto_field_name=True)


@pytest.fixture(params=PROTOCOLS)
def reflection(request, channel):
    return Reflection(channel, request.param)


@pytest.fixture(params=PROTOCOLS)
def admin_reflection(request, admin_channel):
    return Reflection(admin_channel, request.param)


def test_services_are_listed(reflection, admin_reflection):
    assert set(INFERENCE) | set(PROTOCOLS) <= reflection.services()
    assert "sconce.v1.Admin" in admin_reflection.services()


@pytest.mark.parametrize("service", INFERENCE)
def test_every_service_is_described(reflection, service):
    reflection.learn(file_containing_symbol=service)
    methods = reflection.pool.FindServiceByName(service).methods
    assert methods
    for method in methods:
        assert reflection.message(method.input_type.full_name)
        assert reflection.message(method.output_type.full_name)


def test_messages_methods_and_files_are_found_by_name(reflection):
    for symbol in ("sconce.v1.PredictRequest", "sconce.v1.Inference.Predict", "inference.ModelConfig", "google.rpc.ErrorInfo"):
        reflection.learn(file_containing_symbol=symbol)
    reflection.learn(file_by_filename="sconce/v1/inference.proto")
    reflection.learn(file_by_filename="google/rpc/error_details.proto")


def test_an_unknown_symbol_is_not_found(reflection):
    try:
        answer = reflection.ask(file_containing_symbol="no.such.Service")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND
    else:
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_predict_is_called_without_proto_files(reflection):
    answer = reflection.call(
        "sconce.v1.Inference",
        "Predict",
        {"model": "linear", "inputs": [
            {"name": "left", "shape": [1, 16], "floats": [0.5] * 16},
            {"name": "right", "shape": [1, 8], "floats": [1.0] * 8},
        ]},
    )  # fmt: skip
    [output] = answer["outputs"]
    assert output["name"] == "output"
    assert sum(output["floats"]) == pytest.approx(1, rel=1e-5)
    assert answer["served"]["version"] == "1.0.0"


def test_admin_is_called_without_proto_files(admin_reflection):
    answer = admin_reflection.call("sconce.v1.Admin", "ListModels", {})
    assert "linear" in [model["name"] for model in answer["models"]]


def test_an_error_shows_its_reason(reflection):
    """As grpcurl shows it: google.rpc.Status from the trailer, its details by what reflection says of their types."""
    with pytest.raises(grpc.RpcError) as raised:
        reflection.call("sconce.v1.Inference", "Predict", {"model": "no-such-model"})
    error = raised.value
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert "no-such-model" in error.details()

    for name in ("google.rpc.Status", "google.rpc.ErrorInfo"):
        reflection.learn(file_containing_symbol=name)
    trailer = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = reflection.message("google.rpc.Status").FromString(trailer)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    [info] = [detail for detail in status.details if detail.type_url.endswith("/google.rpc.ErrorInfo")]
    info = reflection.message("google.rpc.ErrorInfo").FromString(info.value)
    assert info.domain == "sconce"
    assert info.reason == info.reason.upper() != ""
