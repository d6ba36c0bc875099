"""Writes the models that test_triton.py asks for into a model store.

    python make_store.py DIR

For every data type: `identity_<type>` (one input, one output, any shape of two dimensions) and `reorder_<type>` (two
outputs that differ from the input). Then `linear` (sums, so that joined batches could go wrong), `classes` (an
identity with four labelled classes), `scalar` (a model without any dimension) and `kept` (as `linear`, with a cache). A
model that is there already is left as it is.
"""

import sys
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper
from tensors import DATATYPES

LABELS = ["ask", "bid", "hold", "skip"]


def model_of(name, nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, [numpy_helper.from_array(value, key) for key, value in constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def info(name, onnx_type, *shape):
    return helper.make_tensor_value_info(name, onnx_type, shape)


def identity(name, onnx_type, columns="columns"):
    shape = ("rows", columns)
    nodes = [helper.make_node("Identity", ["input"], ["output"])]
    return model_of(name, nodes, [info("input", onnx_type, *shape)], [info("output", onnx_type, *shape)])


def reorder(name, onnx_type):
    nodes = [
        helper.make_node("Gather", ["input", "order"], ["reordered"], axis=1),
        helper.make_node("Concat", ["input", "reordered"], ["doubled"], axis=1),
    ]
    outputs = [info("reordered", onnx_type, "rows", 4), info("doubled", onnx_type, "rows", 8)]
    return model_of(name, nodes, [info("input", onnx_type, "rows", 4)], outputs, [("order", numpy.array([2, 0, 3, 1]))])


def linear():
    rng = numpy.random.default_rng(20260801)
    constants = [("weights", rng.normal(size=(16, 8)).astype(numpy.float32)), ("bias", rng.normal(size=8).astype(numpy.float32))]
    nodes = [
        helper.make_node("MatMul", ["left", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Mul", ["sum", "right"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["output"], axis=-1),
    ]
    inputs = [info("left", TensorProto.FLOAT, "rows", 16), info("right", TensorProto.FLOAT, "rows", 8)]
    return model_of("linear", nodes, inputs, [info("output", TensorProto.FLOAT, "rows", 8)], constants)


def scalar():
    nodes = [helper.make_node("Neg", ["input"], ["output"])]
    return model_of("scalar", nodes, [info("input", TensorProto.DOUBLE)], [info("output", TensorProto.DOUBLE)])


def main(store):
    models = {"linear": linear(), "kept": linear(), "scalar": scalar(), "classes": identity("classes", TensorProto.FLOAT, len(LABELS))}
    for datatype, (_, onnx_type) in DATATYPES.items():
        for make in (identity, reorder):
            name = f"{make.__name__}_{datatype.lower()}"
            models[name] = make(name, onnx_type)
    for name, model in models.items():
        folder = store / name / "1"
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        onnx.save(model, folder / "model.onnx")
        if name == "classes":
            (folder / "version.yaml").write_text(f"classes: [{', '.join(LABELS)}]\n")
        if name == "kept":
            (store / name / "model.yaml").write_text("cache: { ttl: 1h }\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
