"""Tensors as the Open Inference Protocol writes them, random ones, and onnxruntime's answers in process."""

import ctypes

import ml_dtypes
import numpy
import onnxruntime
from onnx import TensorProto

# Name in the protocol: (numpy's type, ONNX's type).
DATATYPES = {
    "BOOL": (numpy.bool_, TensorProto.BOOL),
    "INT8": (numpy.int8, TensorProto.INT8),
    "INT16": (numpy.int16, TensorProto.INT16),
    "INT32": (numpy.int32, TensorProto.INT32),
    "INT64": (numpy.int64, TensorProto.INT64),
    "UINT8": (numpy.uint8, TensorProto.UINT8),
    "UINT16": (numpy.uint16, TensorProto.UINT16),
    "UINT32": (numpy.uint32, TensorProto.UINT32),
    "UINT64": (numpy.uint64, TensorProto.UINT64),
    "FP16": (numpy.float16, TensorProto.FLOAT16),
    "BF16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
    "FP32": (numpy.float32, TensorProto.FLOAT),
    "FP64": (numpy.float64, TensorProto.DOUBLE),
    "BYTES": (numpy.object_, TensorProto.STRING),
}
DATATYPE_OF_ONNX = {onnx_type: name for name, (_, onnx_type) in DATATYPES.items()}

# How far answers may be apart where the library itself may sum in another order.
RELATIVE = {"FP64": 1e-5, "FP32": 1e-5, "FP16": 1e-3, "BF16": 1e-2}


def as_bytes(element):
    return element.encode() if isinstance(element, str) else bytes(element)


def to_raw(array):
    """The bytes that raw_input_contents takes."""
    array = numpy.asarray(array)
    if array.dtype.kind in "OSU":
        elements = [as_bytes(element) for element in array.ravel()]
        return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    return numpy.ascontiguousarray(array).tobytes()


def from_raw(raw, datatype, shape):
    """The array that raw_output_contents holds. Strings come as bytes."""
    if datatype != "BYTES":
        return numpy.frombuffer(raw, DATATYPES[datatype][0]).reshape(shape)
    elements, at = [], 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 4], "little")
        elements.append(bytes(raw[at + 4 : at + 4 + length]))
        at += 4 + length
    array = numpy.empty(len(elements), numpy.object_)
    array[:] = elements
    return array.reshape(shape)


def random_array(rng, datatype, shape):
    """Any bit pattern, NaN and infinity included; for BYTES text of 0 to 20 characters, some of them long ones."""
    dtype = numpy.dtype(DATATYPES[datatype][0])
    if datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(numpy.bool_)
    if datatype == "BYTES":
        alphabet = list("abcXYZ019 ,:\"\\\n\té漢🕯")
        texts = ["".join(rng.choice(alphabet, rng.integers(0, 21))) for _ in range(int(numpy.prod(shape)))]
        array = numpy.empty(len(texts), numpy.object_)
        array[:] = [text.encode() for text in texts]
        return array.reshape(shape)
    return numpy.frombuffer(rng.bytes(int(numpy.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def open_onnx(model):
    """A session as plain as the server's: one thread, on the CPU. `model` is a path or the model's bytes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_onnx(session, inputs, outputs):
    """onnxruntime's answer: {name: array} to {name: (datatype, array)}, BF16 and strings included."""
    if any(array.dtype.kind in "OSU" for array in inputs.values()):
        answers = session.run(list(outputs), {name: as_text(array) for name, array in inputs.items()})
        return {name: from_numpy(answer) for name, answer in zip(outputs, answers, strict=True)}
    answers = session.run_with_ort_values(list(outputs), {name: to_ort(array) for name, array in inputs.items()})
    return {name: from_ort(value) for name, value in zip(outputs, answers, strict=True)}


def as_text(array):
    """onnxruntime's Python API takes strings as `str` and nothing else."""
    if array.dtype.kind not in "OSU":
        return array
    texts = numpy.empty(array.shape, numpy.object_)
    for at, element in numpy.ndenumerate(array):
        texts[at] = as_bytes(element).decode()
    return texts


def to_ort(array):
    array = numpy.require(array, requirements="CA").reshape(array.shape)
    if array.dtype == ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(numpy.uint16), TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def from_ort(value):
    datatype = DATATYPE_OF_ONNX[value.element_type()]
    if datatype == "BYTES":
        return from_numpy(value.numpy())
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if value.tensor_size_in_bytes() else b""
    return datatype, from_raw(raw, datatype, value.shape())


def from_numpy(array):
    """(datatype, array) of an answer, strings as bytes."""
    if array.dtype.kind in "OSU":
        return "BYTES", from_raw(to_raw(array), "BYTES", array.shape)
    return datatype_of(array), array


def datatype_of(array):
    return next(name for name, (dtype, _) in DATATYPES.items() if numpy.dtype(dtype) == array.dtype)


def same(ours, theirs):
    """'equal' when every bit is, 'close' within RELATIVE, else 'different'."""
    ours, theirs = numpy.asarray(ours), numpy.asarray(theirs)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return "different"
    if to_raw(ours) == to_raw(theirs):
        return "equal"
    name = datatype_of(theirs)
    if name not in RELATIVE:
        return "different"
    close = numpy.allclose(ours.astype(float), theirs.astype(float), rtol=RELATIVE[name], atol=1e-6, equal_nan=True)
    return "close" if close else "different"
