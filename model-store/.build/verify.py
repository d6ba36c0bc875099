"""Checks the committed store: every checksum, and every answer of example.json against the model's own library.

    python verify.py [model ...]        all models by default; exits with 1 if anything differs
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import yaml

import artifact


def lightgbm_answer(folder: Path, version: dict, request: dict) -> dict[str, np.ndarray]:
    import lightgbm as lgb

    names = version["inputs"][0]["feature_names"]
    if "rows" in request:
        # A feature that is not there was allowed to be missing, or the server would refuse the row.
        raw = np.array([[row.get(name) for name in names] for row in request["rows"]], np.float64)
    else:
        raw = artifact.array(request["inputs"][0])
    normalizer = json.loads((folder / version["normalizer"]).read_text())
    x = (raw - np.array(normalizer["mean"])) / np.array(normalizer["scale"])
    output, how = {
        None: ("probability", {}),
        "raw": ("raw_score", {"raw_score": True}),
        "contrib": ("contributions", {"pred_contrib": True}),
        "leaf": ("leaf_index", {"pred_leaf": True}),
    }[request.get("parameters", {}).get("predict_type")]
    return {output: np.asarray(lgb.Booster(model_file=folder / "model.txt").predict(x, **how))}


def onnx_answer(folder: Path, version: dict, request: dict) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {entry["name"]: artifact.array(entry) for entry in request["inputs"]}
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def torch_answer(folder: Path, version: dict, request: dict) -> dict[str, np.ndarray]:
    import torch

    module = torch.jit.load(folder / "model.pt", map_location="cpu")
    feeds = {entry["name"]: torch.from_numpy(artifact.array(entry)) for entry in request["inputs"]}
    with torch.no_grad():
        answer = module(*[feeds[declared["name"]] for declared in version["inputs"]])
    return {version["outputs"][0]["name"]: answer.numpy()}


ANSWERS = {"model.txt": lightgbm_answer, "model.onnx": onnx_answer, "model.pt": torch_answer}


def faults(folder: Path) -> list[str]:
    """What is wrong with one version, in words."""
    version = yaml.safe_load((folder / "version.yaml").read_text())
    found = []
    there = {path.name for path in folder.iterdir()} - {"version.yaml"}
    if there != set(version["files"]):
        found.append(f"version.yaml lists {sorted(version['files'])}, the folder has {sorted(there)}")
    for name, declared in version["files"].items():
        data = (folder / name).read_bytes()
        if (hashlib.sha256(data).hexdigest(), len(data)) != (declared["sha256"], declared["size"]):
            found.append(f"{name}: checksum or size differs")
    if found:
        return found  # the libraries are not to be trusted with a damaged file: LightGBM ends the process

    answer = next(ANSWERS[name] for name in there if name in ANSWERS)
    examples = json.loads((folder / "example.json").read_text())["examples"]
    for i, example in enumerate(examples):
        actual = answer(folder, version, example["request"])
        for entry in example["response"]["outputs"]:
            expected, got = artifact.array(entry), actual[entry["name"]]
            same_shape = list(got.shape) == entry["shape"]
            if not same_shape or not np.allclose(got, expected, example["rtol"], example["atol"], equal_nan=True):
                found.append(f"example {i}: {entry['name']} differs")
    if not found:
        print(f"{folder.relative_to(artifact.STORE)}: {len(there)} files, {len(examples)} examples")
    return found


def main() -> int:
    models = sys.argv[1:] or sorted(path.parent.parent.name for path in artifact.STORE.glob("*/*/version.yaml"))
    failed = False
    for folder in sorted(path.parent for name in set(models) for path in (artifact.STORE / name).glob("*/version.yaml")):
        for fault in faults(folder):
            failed = True
            print(f"{folder.relative_to(artifact.STORE)}: {fault}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
