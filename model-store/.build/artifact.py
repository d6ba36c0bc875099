"""How a version is written down: example.json, version.yaml and their checksums. Knows no model and no data."""

import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml

STORE = Path(__file__).resolve().parent.parent

# The names that the Open Inference Protocol gives to numpy's types.
DATATYPES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
NUMPY_TYPES = {datatype: name for name, datatype in DATATYPES.items()}


# --- example.json ---


def number(value):
    """A JSON value that reads back as the same number in its own type: NaN is null, a float32 keeps its short digits."""
    value = value.item() if type(value).__module__ == "numpy" and value.dtype != np.float32 else value
    if isinstance(value, (str, bytes, bool, int)):
        return value.decode() if isinstance(value, bytes) else value
    if math.isnan(value):
        return None
    # str() of a float32 gives the fewest digits that tell it from its neighbours.
    return float(str(value)) if isinstance(value, np.float32) else float(value)


def tensor(name: str, array: np.ndarray) -> dict:
    """One input or output as example.json has it: flat, row-major."""
    array = np.asarray(array)
    return {
        "name": name,
        "datatype": DATATYPES[array.dtype.name],
        "shape": list(array.shape),
        "data": [number(value) for value in array.reshape(-1)],
    }


def array(entry: dict) -> np.ndarray:
    """The inverse of `tensor`."""
    name = NUMPY_TYPES[entry["datatype"]]
    if name == "bfloat16":
        import ml_dtypes  # comes with onnx; numpy has no bfloat16 of its own

        name = ml_dtypes.bfloat16
    data = [math.nan if value is None else value for value in entry["data"]]
    return np.array(data, dtype=name).reshape(entry["shape"])


def example(request: dict, outputs: dict[str, np.ndarray], rtol: float, atol: float) -> dict:
    """One request and the answer that must come out, within `atol + rtol * |answer|`."""
    response = {"outputs": [tensor(name, value) for name, value in outputs.items()]}
    return {"request": request, "response": response, "rtol": rtol, "atol": atol}


def tensors(inputs: dict[str, np.ndarray], **parameters) -> dict:
    """A request made of tensors."""
    return {"inputs": [tensor(name, value) for name, value in inputs.items()], "parameters": parameters}


def rows(table, **parameters) -> dict:
    """A request made of rows of named features: a DataFrame, one row a row."""
    named = [{name: number(value) for name, value in row.items()} for row in table.to_dict("records")]
    return {"rows": named, "parameters": parameters} if parameters else {"rows": named}


def pretty(value, indent: int = 0) -> str:
    """JSON for people: what fits on a line stays on it, and a tensor's numbers always do."""
    line = json.dumps(value)
    plain_list = isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value)
    if plain_list or len(line) + indent <= 100 or not isinstance(value, (list, dict)):
        return line
    pad, end = " " * (indent + 2), " " * indent
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + pretty(item, indent + 2) for item in value) + f"\n{end}]"
    items = (f"{pad}{json.dumps(key)}: {pretty(item, indent + 2)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + f"\n{end}}}"


def write_examples(path: Path, description: str, examples: list[dict]) -> None:
    path.write_text(pretty({"description": description, "examples": examples}) + "\n")


# --- version.yaml ---


class Quoted(str):
    """A string that YAML must not take for a number: some checksums look like `12e5`."""


yaml.SafeDumper.add_representer(
    Quoted, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"')
)


def significant(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


def baseline(table) -> dict:
    """What the features looked like in training, raw, for drift to compare with. `missing` is a fraction of rows,
    `deciles` are the nine inner ones; all but `missing` are of the values that are there."""
    out = {}
    for name, column in table.items():
        present = column.dropna().to_numpy()
        out[name] = {
            "mean": significant(present.mean()),
            "std": significant(present.std()),
            "min": significant(present.min()),
            "max": significant(present.max()),
            "missing": significant(column.isna().mean()),
            "deciles": [significant(value) for value in np.quantile(present, np.arange(1, 10) / 10)],
        }
    return {"features": out}


def training(data: str, split, seed: int, script: str) -> dict:
    """The `training` section. `split` is market.Split; its validation stretch is the gap between `to` and `test_from`."""
    return {
        "data": data,
        "from": split.train_from,
        "to": split.train_to,
        "test_from": split.test_from,
        "test_to": split.test_to,
        "seed": seed,
        "script": f"model-store/.build/{script}",
    }


def write_version(folder: Path, note: str, description: dict) -> None:
    """Writes version.yaml last, over every other file of the version; `note` becomes its opening comment."""
    files = {
        path.name: {"sha256": Quoted(hashlib.sha256(path.read_bytes()).hexdigest()), "size": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != "version.yaml"
    }
    if "metrics" in description:
        description["metrics"] = {
            name: value if isinstance(value, int) else significant(value)
            for name, value in description["metrics"].items()
        }
    comment = "".join(f"# {line}\n" for line in note.strip().splitlines())

    def text(created: str) -> str:
        document = {"files": files, "created": Quoted(created), **description}
        return comment + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=110)

    path = folder / "version.yaml"
    before = path.read_text() if path.exists() else ""
    # A run that comes to the same result leaves the file as it is.
    if not before or before != text(yaml.safe_load(before)["created"]):
        path.write_text(text(datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))


def version_folder(model: str, version: str) -> Path:
    folder = STORE / model / version
    folder.mkdir(parents=True, exist_ok=True)
    return folder
