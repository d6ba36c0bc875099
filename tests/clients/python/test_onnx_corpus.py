"""The operator tests of the `onnx` package, served: every answer as onnxruntime gives it in process.

The server serves DIR/store of make_onnx_corpus.py, and SCONCE_CORPUS is DIR. The two library versions must be the same.
"""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy
import pytest
from tensors import from_raw, same
from tritonclient.grpc import service_pb2, service_pb2_grpc

CASES_MIN = 800
CALLERS = 8
LOADING_S_MAX = 900
PATIENCE_S = 60


@pytest.fixture(scope="module")
def stub(channel):
    """The generated stub that tritonclient itself uses: raw bytes in and out, no arrays between."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    deadline = time.monotonic() + LOADING_S_MAX
    while not stub.ServerReady(service_pb2.ServerReadyRequest(), wait_for_ready=True, timeout=PATIENCE_S).ready:
        assert time.monotonic() < deadline, f"the server is not ready after {LOADING_S_MAX} s"
        time.sleep(0.5)
    return stub


def request_of(case, raw):
    request = service_pb2.ModelInferRequest(model_name=case["model"])
    for index, tensor in enumerate(case["inputs"]):
        request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        request.raw_input_contents.append(raw[f"inputs_{index}"].tobytes())
    for tensor in case["outputs"]:
        request.outputs.add(name=tensor["name"])
    return request


def verdict(stub, folder, case):
    """'equal', 'close', or what is wrong."""
    with numpy.load(folder / "data" / f"{case['model']}.npz") as raw:
        try:
            response = stub.ModelInfer(request_of(case, raw), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        verdicts = set()
        for index, (ours, theirs) in enumerate(zip(response.outputs, case["outputs"], strict=True)):
            if (ours.name, ours.datatype, list(ours.shape)) != (theirs["name"], theirs["datatype"], theirs["shape"]):
                return f"expected {theirs}, got {ours.name} {ours.datatype} {list(ours.shape)}"
            answer = from_raw(response.raw_output_contents[index], ours.datatype, ours.shape)
            expected = from_raw(raw[f"outputs_{index}"].tobytes(), theirs["datatype"], theirs["shape"])
            verdicts.add(same(answer, expected))
    return next(word for word in ("different", "close", "equal") if word in verdicts)


def test_every_case_is_answered_as_onnxruntime_does(stub, corpus, capsys):
    written = json.loads((corpus / "cases.json").read_text())
    cases = written["cases"]
    assert len(cases) >= CASES_MIN
    with ThreadPoolExecutor(CALLERS) as callers:
        verdicts = list(callers.map(lambda case: verdict(stub, corpus, case), cases))
    counts = Counter(word if word in ("equal", "close") else "wrong" for word in verdicts)
    wrong = [f"{case['model']}: {word}" for case, word in zip(cases, verdicts, strict=True) if word not in ("equal", "close")]
    with capsys.disabled():
        print(f"\nonnx corpus: {written['found']} found, left out {written['left_out']}; {len(cases)} served: {dict(counts)}")
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
