"""Writes the operator tests of the `onnx` package as one model store, with onnxruntime's answers beside it.

    python make_onnx_corpus.py DIR

    DIR/store/<case>/1/model.onnx   the model store: serve this
    DIR/data/<case>.npz             the raw bytes of the case's inputs and of onnxruntime's outputs
    DIR/cases.json                  the cases, and how many were left out for which reason

Left out is what the protocol cannot carry (sequences, maps, optionals, 8- and 4-bit floats and the like), what
onnxruntime itself refuses to load or run, and what gives another answer each time.
"""

import json
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy
from onnx.backend.test.loader import load_model_tests
from tensors import DATATYPE_OF_ONNX, open_onnx, run_onnx, to_raw


class LeftOut(Exception):
    """Why a case is not in the corpus."""


def tensor_datatype(value):
    """The protocol's name for the type of a graph's input or output, or None where it has none."""
    if value.type.WhichOneof("value") != "tensor_type":
        return None
    return DATATYPE_OF_ONNX.get(value.type.tensor_type.elem_type)


def inputs_of(case):
    graph = case.model.graph
    constants = {tensor.name for tensor in graph.initializer}
    declared = [value for value in graph.input if value.name not in constants]
    given = case.data_sets[0][0]
    if not all(tensor_datatype(value) for value in declared):
        raise LeftOut("an input that the protocol cannot carry")
    if len(given) != len(declared) or any(array is None or isinstance(array, list) for array in given):
        raise LeftOut("an input that is not given")
    return {value.name: (tensor_datatype(value), numpy.asarray(array)) for value, array in zip(declared, given)}


def outputs_of(case):
    names = [value.name for value in case.model.graph.output if tensor_datatype(value)]
    if not names:
        raise LeftOut("no output that the protocol can carry")
    return names


def answers_of(case, inputs, outputs):
    """onnxruntime's answers, the same from two sessions."""
    model = case.model.SerializeToString()
    arrays = {name: array for name, (_, array) in inputs.items()}
    try:
        sessions = [open_onnx(model), open_onnx(model)]
    except Exception as error:
        raise LeftOut("onnxruntime does not load it") from error
    try:
        first, second = (run_onnx(session, arrays, outputs) for session in sessions)
    except Exception as error:
        raise LeftOut("onnxruntime does not run it") from error
    if any(to_raw(first[name][1]) != to_raw(second[name][1]) for name in outputs):
        raise LeftOut("another answer each time")
    return first


def write(folder, case, inputs, answers):
    """The model into the store, its tensors into the npz; returns the case's entry in cases.json."""
    version = folder / "store" / case.name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(case.model.SerializeToString())
    raw, entry = {}, {"model": case.name, "inputs": [], "outputs": []}
    for side, tensors in (("inputs", inputs), ("outputs", answers)):
        for index, (name, (datatype, array)) in enumerate(tensors.items()):
            raw[f"{side}_{index}"] = numpy.frombuffer(to_raw(array), numpy.uint8)
            entry[side].append({"name": name, "datatype": datatype, "shape": list(array.shape)})
    numpy.savez(folder / "data" / f"{case.name}.npz", **raw)
    return entry


def main(folder):
    shutil.rmtree(folder / "store", ignore_errors=True)
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    cases, left_out = [], Counter()
    with warnings.catch_warnings(action="ignore"):
        tests = load_model_tests(kind="node")
    for case in tests:
        try:
            inputs, outputs = inputs_of(case), outputs_of(case)
            cases.append(write(folder, case, inputs, answers_of(case, inputs, outputs)))
        except LeftOut as reason:
            left_out[str(reason)] += 1
    summary = {"found": len(tests), "left_out": dict(left_out.most_common()), "cases": cases}
    (folder / "cases.json").write_text(json.dumps(summary, indent=1))
    print(f"{len(tests)} cases found, {len(cases)} written, left out: {summary['left_out']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
