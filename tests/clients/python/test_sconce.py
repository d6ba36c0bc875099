"""sconce.v1 as a generated client: the sample models answer as their example.json says, in every form of question.

Wants `linear` of make_store.py beside the sample store.
"""

import json
import math
import os
import struct

import grpc
import pytest
from google.protobuf import json_format
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

PATIENCE_S = 60
# Models that this machine cannot serve, e.g. SCONCE_WITHOUT=volatility-transformer where there is no libtorch.
WITHOUT = set(filter(None, os.environ.get("SCONCE_WITHOUT", "").split(",")))
TYPED = {"BOOL": "bools", "FP64": "doubles", "BYTES": "strings"}
TYPED |= {f"INT{bits}": "ints" for bits in (8, 16, 32, 64)} | {f"UINT{bits}": "uints" for bits in (8, 16, 32, 64)}
TYPED |= {"FP16": "floats", "BF16": "floats", "FP32": "floats"}


@pytest.fixture(scope="module")
def stub(channel, sconce):
    return sconce.InferenceStub(channel)


def as_number(value):
    """JSON has no NaN and no infinity: null, "NaN" and "Infinity" stand for them."""
    return math.nan if value is None else float(value) if isinstance(value, str) else value


def examples_of(store):
    """(model, version, example) of every example.json of the store."""
    for path in sorted(store.glob("*/*/example.json")):
        for example in json.loads(path.read_text())["examples"]:
            yield path.parts[-3], as_written(path.parts[-2]), example


def as_written(version):
    """As the server writes a version: "v1.2" is "1.2.0"."""
    numbers = version.removeprefix("v").split(".")
    return ".".join(numbers + ["0"] * (3 - len(numbers)))


def request_of(sconce, model, version, asked):
    """The question of an example as a PredictRequest: rows as they are, tensors typed."""
    request = sconce.PredictRequest(model=model, version=version)
    for row in asked.get("rows", []):
        json_format.ParseDict(row, request.rows.add())
    for given in asked.get("inputs", []):
        tensor = request.inputs.add(name=given["name"], dtype=sconce.DataType.Value(given["datatype"]), shape=given["shape"])
        values = given["data"] if given["datatype"] == "BYTES" else [as_number(value) for value in given["data"]]
        getattr(tensor, TYPED[given["datatype"]]).extend(values)
    for key, value in asked.get("parameters", {}).items():
        json_format.ParseDict({f"{kind_of(value)}_value": value}, request.parameters[key])
    return request


def kind_of(value):
    return {bool: "bool", int: "int64", float: "double", str: "string"}[type(value)]


def assert_close(ours, theirs, tolerance):
    """Element by element: |ours - theirs| <= atol + rtol * |theirs|, NaN equal to NaN."""
    assert len(ours) == len(theirs)
    for our, their in zip(ours, map(as_number, theirs)):
        if isinstance(their, bytes | str):
            assert our == their
        elif not (math.isnan(our) and math.isnan(their)):
            assert math.isclose(our, their, rel_tol=tolerance["rtol"], abs_tol=tolerance["atol"]) or our == their


def tolerance_of(example):
    return {"rtol": example.get("rtol", 1e-5), "atol": example.get("atol", 1e-6)}


def test_the_sample_store_has_examples(store):
    assert {"early-signal", "momentum-lstm", "volatility-transformer", "statistical-signal"} <= {model for model, _, _ in examples_of(store)}


def served(admin_channel, sconce):
    """The versions that are ready."""
    admin = sconce.AdminStub(admin_channel)
    models = admin.ListModels(sconce.ListModelsRequest(), timeout=PATIENCE_S).models
    return {(model.name, version) for model in models for version in model.ready_versions}


def test_every_example_is_answered(stub, sconce, store, admin_channel):
    ready = served(admin_channel, sconce)
    asked = set()
    for model, version, example in examples_of(store):
        if (model, version) not in ready:
            continue  # an older version, which `versions: { latest: 1 }` leaves in the store
        asked.add(model)
        request = request_of(sconce, model, version, example["request"])
        request.output_form = sconce.OUTPUT_FORM_TYPED
        response = stub.Predict(request, timeout=PATIENCE_S)
        assert (response.served.model, response.served.version) == (model, version)
        assert response.served.reason == sconce.ROUTE_REASON_PINNED
        outputs = {output.name: output for output in response.outputs}
        for expected in example["response"]["outputs"]:
            output = outputs[expected["name"]]
            assert sconce.DataType.Name(output.dtype) == expected["datatype"]
            assert list(output.shape) == expected["shape"]
            assert_close(getattr(output, TYPED[expected["datatype"]]), expected["data"], tolerance_of(example))
    assert asked == {model for model, _, _ in examples_of(store)} - WITHOUT


# --- Forms of question and answer, with early-signal ---


@pytest.fixture(scope="module")
def row(store, sconce, admin_channel):
    """(version, a named row, its probability) of early-signal."""
    ready = served(admin_channel, sconce)
    for model, version, example in examples_of(store):
        if model == "early-signal" and (model, version) in ready and len(example["request"].get("rows", [])) == 1:
            return version, example["request"]["rows"][0], example["response"]["outputs"][0]["data"][0]
    pytest.fail("early-signal has no example of one row")


def test_rows_in_named_values_out(stub, sconce, row):
    version, features, probability = row
    backwards = dict(reversed(features.items()))
    for named in (features, backwards):
        request = request_of(sconce, "early-signal", version, {"rows": [named, named]})
        response = stub.Predict(request, timeout=PATIENCE_S)
        assert not response.outputs
        assert [answer["probability"] for answer in response.rows] == pytest.approx([probability] * 2, rel=1e-12)
        assert len(set(response.prediction_ids)) == 2


def test_table_in_named_values_out(stub, sconce, row):
    version, features, probability = row
    values = [as_number(value) for value in features.values()]
    table = sconce.Table(names=list(features), values=values * 3)
    request = sconce.PredictRequest(model="early-signal", version=version, table=table)
    response = stub.Predict(request, timeout=PATIENCE_S)
    assert [answer["probability"] for answer in response.rows] == pytest.approx([probability] * 3, rel=1e-12)


def test_raw_in_raw_out_without_dtype_shape_and_name(stub, sconce, row):
    version, features, probability = row
    raw = struct.pack(f"<{len(features)}d", *map(as_number, features.values()))
    request = sconce.PredictRequest(model="early-signal", version=version, inputs=[sconce.Tensor(raw=raw)])
    response = stub.Predict(request, timeout=PATIENCE_S)
    [output] = response.outputs
    assert struct.unpack("<d", output.raw) == pytest.approx((probability,), rel=1e-12)
    assert not output.doubles


def test_the_form_of_the_answer_can_be_chosen(stub, sconce, row):
    version, features, probability = row
    request = request_of(sconce, "early-signal", version, {"rows": [features]})
    request.output_form = sconce.OUTPUT_FORM_RAW
    [output] = stub.Predict(request, timeout=PATIENCE_S).outputs
    assert struct.unpack("<d", output.raw) == pytest.approx((probability,), rel=1e-12)


def test_what_the_response_says_of_itself(stub, sconce):
    request = sconce.PredictRequest(model="linear", request_id="order-7", attributes={"customer": "c-17"}, priority=sconce.PRIORITY_HIGH)
    request.inputs.add(name="left", floats=[0.5] * 16, shape=[1, 16])
    request.inputs.add(name="right", floats=[0.5] * 8, shape=[1, 8])
    response = stub.Predict(request, timeout=PATIENCE_S)
    assert response.request_id == "order-7"
    assert len(response.prediction_ids) == 1
    assert (response.served.version, response.served.variant) == ("1.0.0", "stable")
    assert response.served.reason == sconce.ROUTE_REASON_STABLE
    assert not response.HasField("degraded")
    assert response.timing.batch_rows >= 1


# --- Errors ---


def error_of(stub, request):
    """The code, the text and the ErrorInfo of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        stub.Predict(request, timeout=PATIENCE_S)
    status = rpc_status.from_call(raised.value)
    [info] = [detail for detail in status.details if detail.Is(ErrorInfo.DESCRIPTOR)]
    found = ErrorInfo()
    info.Unpack(found)
    assert found.domain == "sconce"
    assert found.reason
    return raised.value.code(), raised.value.details(), found


def test_unknown_model_version_and_label(stub, sconce):
    for request, said in (
        (sconce.PredictRequest(model="no-such-model"), "no-such-model"),
        (sconce.PredictRequest(model="linear", version="99"), "99"),
        (sconce.PredictRequest(model="linear", label="no-such-label"), "no-such-label"),
    ):
        code, text, _ = error_of(stub, request)
        assert code == grpc.StatusCode.NOT_FOUND
        assert said in text


def test_features_that_do_not_fit(stub, sconce, row):
    version, features, _ = row
    absent = dict(list(features.items())[1:])
    [missing] = features.keys() - absent.keys()
    for named, said in ((absent, missing), (features | {"no_such_feature": 1.0}, "no_such_feature"), (features | {missing: "high"}, missing)):
        code, text, _ = error_of(stub, request_of(sconce, "early-signal", version, {"rows": [named]}))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert said in text


def test_data_in_two_forms_and_in_none(stub, sconce, row):
    version, features, _ = row
    both = request_of(sconce, "early-signal", version, {"rows": [features]})
    both.inputs.add(name="features", doubles=[0.0] * len(features))
    for request in (both, sconce.PredictRequest(model="early-signal", version=version)):
        code, _, _ = error_of(stub, request)
        assert code == grpc.StatusCode.INVALID_ARGUMENT


def test_admin_on_the_inference_port_says_where_it_is(channel, sconce, admin_address):
    with pytest.raises(grpc.RpcError) as raised:
        sconce.AdminStub(channel).ListModels(sconce.ListModelsRequest(), timeout=PATIENCE_S)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert admin_address.rpartition(":")[2] in raised.value.details()
