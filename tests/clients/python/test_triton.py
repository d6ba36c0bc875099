"""tritonclient.grpc, as pip installs it, against the store of make_store.py beside the sample store."""

import queue
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import tritonclient.grpc as triton
from tensors import DATATYPES, open_onnx, random_array, run_onnx, same, to_raw
from tritonclient.utils import InferenceServerException

PATIENCE_S = 60
CALLERS = 16


@pytest.fixture(scope="module")
def client(grpc_address):
    with triton.InferenceServerClient(grpc_address) as client:
        yield client


@pytest.fixture
def rng(request):
    """A generator seeded by the test's own name: another test more or less changes nothing."""
    return numpy.random.default_rng(list(request.node.name.encode()))


def tensor(name, datatype, array):
    """An input as tritonclient makes it."""
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def infer(client, model, inputs, **options):
    """One call; `inputs` is {name: (datatype, array)}."""
    tensors = [tensor(name, datatype, array) for name, (datatype, array) in inputs.items()]
    return client.infer(model, tensors, client_timeout=PATIENCE_S, **options)


def status_of(raised):
    return raised.value.status().removeprefix("StatusCode.")


# --- Health and metadata ---


def test_server_and_models_are_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("early-signal")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("no-such-model")
    assert not client.is_model_ready("linear", "99")


def test_server_metadata(client):
    metadata = client.get_server_metadata()
    assert metadata.name == "sconce"
    assert metadata.version
    assert {"classification", "model_configuration"} <= set(metadata.extensions)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_model_metadata(client, datatype):
    metadata = client.get_model_metadata(f"identity_{datatype.lower()}")
    [(given, returned)] = zip(metadata.inputs, metadata.outputs, strict=True)
    assert (given.name, given.datatype, list(given.shape)) == ("input", datatype, [-1, -1])
    assert (returned.name, returned.datatype, list(returned.shape)) == ("output", datatype, [-1, -1])
    assert metadata.name == f"identity_{datatype.lower()}"
    assert list(metadata.versions) == ["1.0.0"]
    assert metadata.platform == "onnxruntime_onnx"


def test_metadata_of_a_lightgbm_model(client):
    metadata = client.get_model_metadata("early-signal", "1.0.0")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("features", "FP64", [-1, 19])]
    assert "1.0.0" in metadata.versions


@pytest.mark.parametrize("datatype", DATATYPES)
def test_model_config(client, datatype):
    config = client.get_model_config(f"identity_{datatype.lower()}").config
    written = "STRING" if datatype == "BYTES" else datatype
    assert config.name == f"identity_{datatype.lower()}"
    assert config.backend == "onnxruntime"
    [(given, returned)] = zip(config.input, config.output, strict=True)
    for each in (given, returned):
        assert type(given).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[each.data_type].name == f"TYPE_{written}"
        assert list(each.dims) == ([-1] if config.max_batch_size else [-1, -1])
    assert (given.name, returned.name) == ("input", "output")


def test_model_config_as_json(client):
    """The form that perf tools read."""
    assert client.get_model_config("linear", as_json=True)["config"]["name"] == "linear"


# --- Tensors ---


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 7), (2, 0)], ids=str)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_bit_comes_back(client, rng, datatype, shape):
    array = random_array(rng, datatype, shape)
    result = infer(client, f"identity_{datatype.lower()}", {"input": (datatype, array)})
    answer = result.as_numpy("output")
    assert answer.shape == shape
    assert answer.dtype == array.dtype
    assert to_raw(answer) == to_raw(array)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_answers_equal_onnxruntime(client, rng, store, datatype):
    model = f"reorder_{datatype.lower()}"
    array = random_array(rng, datatype, (5, 4))
    result = infer(client, model, {"input": (datatype, array)})
    expected = run_onnx(open_onnx(store / model / "1" / "model.onnx"), {"input": array}, ["reordered", "doubled"])
    for output, (kind, theirs) in expected.items():
        assert kind == datatype
        assert same(result.as_numpy(output), theirs) == "equal"


@pytest.mark.parametrize("datatype", DATATYPES)
def test_joined_answers_equal_answers_alone(client, rng, store, datatype):
    """Many callers at once, each with rows of its own: none may see another's."""
    model = f"reorder_{datatype.lower()}"
    session = open_onnx(store / model / "1" / "model.onnx")
    arrays = [random_array(rng, datatype, (int(rng.integers(1, 9)), 4)) for _ in range(8 * CALLERS)]
    with ThreadPoolExecutor(CALLERS) as callers:
        results = list(callers.map(lambda array: infer(client, model, {"input": (datatype, array)}), arrays))
    for array, result in zip(arrays, results, strict=True):
        for output, (_, theirs) in run_onnx(session, {"input": array}, ["reordered", "doubled"]).items():
            assert same(result.as_numpy(output), theirs) == "equal"


def test_joined_sums_equal_sums_alone(client, rng, store):
    session = open_onnx(store / "linear" / "1" / "model.onnx")
    rows = [int(rng.integers(1, 9)) for _ in range(16 * CALLERS)]
    calls = [{name: rng.normal(size=(count, width)).astype(numpy.float32) for name, width in (("left", 16), ("right", 8))} for count in rows]

    def call(arrays):
        return infer(client, "linear", {name: ("FP32", array) for name, array in arrays.items()})

    with ThreadPoolExecutor(CALLERS) as callers:
        results = list(callers.map(call, calls))
    for arrays, result in zip(calls, results, strict=True):
        _, theirs = run_onnx(session, arrays, ["output"])["output"]
        assert same(result.as_numpy("output"), theirs) != "different"


def test_scalar(client):
    result = infer(client, "scalar", {"input": ("FP64", numpy.array(2.5))})
    answer = result.as_numpy("output")
    assert answer.shape == ()
    assert answer == -2.5


def test_bytes_that_are_not_text_come_back(client):
    array = numpy.array([[b"\xff\xfe", b"a\0b", b"", b"\0"]], numpy.object_)
    assert to_raw(infer(client, "identity_bytes", {"input": ("BYTES", array)}).as_numpy("output")) == to_raw(array)


def test_ten_megabytes_come_back(client, rng):
    array = random_array(rng, "FP32", (1, 10 * 1024 * 1024 // 4))
    assert to_raw(infer(client, "identity_fp32", {"input": ("FP32", array)}).as_numpy("output")) == to_raw(array)


# --- What a request can ask for ---


def test_only_the_outputs_asked_for_come_back_in_that_order(client, rng):
    array = random_array(rng, "INT32", (2, 4))
    for names in (["doubled"], ["reordered"], ["doubled", "reordered"]):
        outputs = [triton.InferRequestedOutput(name) for name in names]
        response = infer(client, "reorder_int32", {"input": ("INT32", array)}, outputs=outputs).get_response()
        assert [output.name for output in response.outputs] == names
        assert len(response.raw_output_contents) == len(names)


def test_classification_names_the_largest_values(client):
    array = numpy.array([[0.1, 0.7, 0.05, 0.15], [9, -1, 2, 8]], numpy.float32)
    outputs = [triton.InferRequestedOutput("output", class_count=2)]
    answer = infer(client, "classes", {"input": ("FP32", array)}, outputs=outputs).as_numpy("output")
    assert answer.shape == (2, 2)
    parts = [[element.decode().split(":") for element in row] for row in answer]
    assert [[(int(index), label) for _, index, label in row] for row in parts] == [[(1, "bid"), (3, "skip")], [(0, "ask"), (3, "skip")]]
    assert numpy.allclose([[float(value) for value, *_ in row] for row in parts], [[0.7, 0.15], [9, 8]], rtol=1e-6)


def test_classification_without_labels_and_with_too_many_classes(client):
    outputs = [triton.InferRequestedOutput("output", class_count=9)]
    answer = infer(client, "identity_fp32", {"input": ("FP32", numpy.array([[3, 1, 2]], numpy.float32))}, outputs=outputs)
    parts = [element.decode().split(":") for element in answer.as_numpy("output").ravel()]
    assert [int(index) for _, index, *_ in parts] == [0, 2, 1]
    assert all(len(part) == 2 for part in parts)


def test_the_request_id_comes_back(client, rng):
    array = random_array(rng, "UINT8", (1, 3))
    for request_id in ("", "order-7", "ä" * 40):
        result = infer(client, "identity_uint8", {"input": ("UINT8", array)}, request_id=request_id)
        assert result.get_response().id == request_id


def test_the_response_says_which_version_answered(client, rng):
    array = random_array(rng, "FP32", (1, 3))
    response = infer(client, "identity_fp32", {"input": ("FP32", array)}).get_response()
    assert response.model_name == "identity_fp32"
    assert response.model_version == "1.0.0"
    assert response.parameters["prediction_id"].string_param
    assert response.parameters["variant"].string_param
    assert response.parameters["route_reason"].string_param == "stable"
    assert "degraded" not in response.parameters
    assert "cache" not in response.parameters


def test_a_kept_answer_says_so_and_how_old_it_is(client, rng):
    # Whether an earlier run asked the same does not matter.
    inputs = {"left": ("FP32", rng.random((2, 16), numpy.float32)), "right": ("FP32", rng.random((2, 8), numpy.float32))}
    first, second = (infer(client, "kept", inputs) for _ in range(2))
    assert first.get_response().parameters["cache"].string_param in ("miss", "hit")
    parameters = second.get_response().parameters
    assert parameters["cache"].string_param == "hit"
    assert 0 <= parameters["cache_age_ms"].int64_param < 3_600_000
    assert same(first.as_numpy("output"), second.as_numpy("output")) == "equal"
    fresh = infer(client, "linear", inputs).as_numpy("output")
    numpy.testing.assert_allclose(second.as_numpy("output"), fresh, rtol=1e-5)
    assert client.get_model_config("kept").config.response_cache.enable


def test_parameters_priority_and_timeout_are_taken(client, rng):
    array = random_array(rng, "FP32", (1, 3))
    result = infer(
        client,
        "identity_fp32",
        {"input": ("FP32", array)},
        priority=1,
        timeout=30_000_000,
        parameters={"customer": "c-17", "new": True, "visits": 3, "share": 0.25},
    )
    assert to_raw(result.as_numpy("output")) == to_raw(array)


def test_a_version_can_be_named(client):
    for version in ("1", "1.0.0", "v1"):
        infer(client, "scalar", {"input": ("FP64", numpy.array(1.0))}, model_version=version)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read_or_told_what_is(client, rng, algorithm):
    array = random_array(rng, "FP32", (4, 3))
    try:
        result = infer(client, "identity_fp32", {"input": ("FP32", array)}, compression_algorithm=algorithm)
    except InferenceServerException as error:
        assert error.status() == "StatusCode.UNIMPLEMENTED"
        assert "gzip" in error.message()  # the encodings that are taken
    else:
        assert to_raw(result.as_numpy("output")) == to_raw(array)


# --- Streams ---


def test_a_stream_answers_every_request_in_order(grpc_address, rng):
    answers = queue.Queue()
    arrays = [random_array(rng, "INT64", (int(rng.integers(1, 5)), 4)) for _ in range(200)]
    with triton.InferenceServerClient(grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index, array in enumerate(arrays):
            model = ("identity_int64", "reorder_int64")[index % 2]
            client.async_stream_infer(model, [tensor("input", "INT64", array)], request_id=str(index))
        received = [answers.get(timeout=PATIENCE_S) for _ in arrays]
        client.stop_stream()
    assert answers.empty()
    assert [error for _, error in received if error] == []
    assert [result.get_response().id for result, _ in received] == [str(index) for index in range(len(arrays))]
    for (result, _), array in list(zip(received, arrays, strict=True))[::2]:
        assert to_raw(result.as_numpy("output")) == to_raw(array)


def test_an_error_in_a_stream_leaves_the_stream_usable(grpc_address, rng):
    answers = queue.Queue()
    array = random_array(rng, "INT64", (1, 4))
    with triton.InferenceServerClient(grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for model in ("identity_int64", "no-such-model", "identity_int64"):
            client.async_stream_infer(model, [tensor("input", "INT64", array)])
        received = [answers.get(timeout=PATIENCE_S) for _ in range(3)]
        client.stop_stream()
    assert [error is None for _, error in received] == [True, False, True]
    assert "no-such-model" in received[1][1].message()


# --- Callbacks ---


def test_async_infer_calls_back(client, rng):
    answers = queue.Queue()
    array = random_array(rng, "FP64", (2, 4))
    client.async_infer("identity_fp64", [tensor("input", "FP64", array)], lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=PATIENCE_S)
    assert error is None
    assert to_raw(result.as_numpy("output")) == to_raw(array)


# --- What bad input gets ---


def test_unknown_model_and_version(client, rng):
    inputs = {"input": ("FP32", random_array(rng, "FP32", (1, 3)))}
    with pytest.raises(InferenceServerException, match="no-such-model") as raised:
        infer(client, "no-such-model", inputs)
    assert status_of(raised) == "NOT_FOUND"
    for version in ("99", "no-such-label"):
        with pytest.raises(InferenceServerException, match=version) as raised:
            infer(client, "identity_fp32", inputs, model_version=version)
        assert status_of(raised) == "NOT_FOUND"
    for ask in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException) as raised:
            ask("no-such-model")
        assert status_of(raised) == "NOT_FOUND"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"inputs": ("INT32", numpy.zeros((1, 4), numpy.int32))}, "inputs"),
        ({"input": ("FP32", numpy.zeros((1, 4), numpy.float32))}, "FP32"),
        ({"input": ("INT32", numpy.zeros((1, 4, 1), numpy.int32))}, "input"),
        ({"input": ("INT32", numpy.zeros((1, 5), numpy.int32))}, "5"),
        ({}, "input"),
    ],
    ids=["unknown input", "wrong dtype", "wrong rank", "wrong dimension", "no input"],
)
def test_input_that_does_not_fit(client, inputs, said):
    with pytest.raises(InferenceServerException, match=said) as raised:
        infer(client, "reorder_int32", inputs)
    assert status_of(raised) == "INVALID_ARGUMENT"


def test_shape_that_does_not_fit_the_bytes(client):
    given = tensor("input", "INT32", numpy.zeros((2, 4), numpy.int32))
    for shape in ([3, 4], [-2, -4], [1 << 40, 1 << 40], [-1, 4]):
        given.set_shape(shape)
        with pytest.raises(InferenceServerException, match="input") as raised:
            client.infer("reorder_int32", [given], client_timeout=PATIENCE_S)
        assert status_of(raised) == "INVALID_ARGUMENT"


def test_unknown_output(client):
    outputs = [triton.InferRequestedOutput("no-such-output")]
    with pytest.raises(InferenceServerException, match="no-such-output") as raised:
        infer(client, "scalar", {"input": ("FP64", numpy.array(1.0))}, outputs=outputs)
    assert status_of(raised) == "INVALID_ARGUMENT"


def test_shared_memory_is_refused(client):
    given = triton.InferInput("input", [1, 4], "INT32")
    given.set_shared_memory("region", 16)
    with pytest.raises(InferenceServerException, match="shared.memory") as raised:
        client.infer("reorder_int32", [given], client_timeout=PATIENCE_S)
    assert status_of(raised) in ("INVALID_ARGUMENT", "UNIMPLEMENTED")
