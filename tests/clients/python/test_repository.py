"""Triton's model repository and statistics extensions, by tritonclient, against a server that speaks them and serves `tiny`
with the versions 1.0.0 and 1.1.0, of which it loads the higher (tests/it/operators/repository.rs).
"""

import numpy
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


@pytest.fixture
def client(grpc_address):
    with triton.InferenceServerClient(grpc_address) as client:
        yield client


def infer(client, rows=1):
    tensors = []
    for name in ("INPUT0", "INPUT1"):
        tensor = triton.InferInput(name, [rows, 16], "FP32")
        tensor.set_data_from_numpy(numpy.ones([rows, 16], numpy.float32))
        tensors.append(tensor)
    return client.infer("tiny", tensors)


def states(client):
    index = client.get_model_repository_index(as_json=True)["models"]
    return {(model["name"], model["version"]): model.get("state") for model in index}


def test_the_index_has_every_version(client):
    assert states(client) == {("tiny", "1.0.0"): "UNAVAILABLE", ("tiny", "1.1.0"): "READY"}


def test_a_model_is_unloaded_and_loaded(client):
    client.unload_model("tiny")
    assert not client.is_model_ready("tiny")
    assert states(client)["tiny", "1.1.0"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="is disabled"):
        infer(client)
    client.load_model("tiny")
    assert client.is_model_ready("tiny")
    assert infer(client) is not None
    client.unload_model("tiny", unload_dependents=True)
    client.load_model("tiny")


def test_overrides_are_refused(client):
    with pytest.raises(InferenceServerException, match="model store") as refused:
        client.load_model("tiny", config='{"max_batch_size": 1}')
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException) as unknown:
        client.load_model("other")
    assert unknown.value.status() == "StatusCode.NOT_FOUND"
    assert client.is_model_ready("tiny")


def test_calls_and_rows_are_counted(client):
    def counted():
        [model] = client.get_inference_statistics("tiny", as_json=True)["model_stats"]
        stats = model["inference_stats"]
        return (
            int(model.get("inference_count", 0)),
            int(model.get("execution_count", 0)),
            int(stats["success"].get("count", 0)),
            int(stats["compute_infer"].get("ns", 0)),
        )

    rows, runs, calls, spent = counted()
    infer(client, rows=3)
    after = counted()
    assert after[:3] == (rows + 3, runs + 1, calls + 1)
    assert after[3] > spent
    assert client.get_inference_statistics("tiny", "1.1.0", as_json=True)["model_stats"][0]["version"] == "1.1.0"
    with pytest.raises(InferenceServerException):
        client.get_inference_statistics("other")


def test_the_extensions_are_named(client):
    extensions = client.get_server_metadata(as_json=True)["extensions"]
    assert {"model_repository", "statistics"} <= set(extensions)
