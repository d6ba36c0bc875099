#!/usr/bin/env python3
"""All that needs a GPU, in one go: the CUDA builds of the libraries, the build, the tests, the figures.

    scripts/gpu.py              fetch, build, test, measure, and append the figures to benches/RESULTS.md
    scripts/gpu.py --check      only say whether this machine can
    scripts/gpu.py --no-bench   without the figures
    scripts/gpu.py --no-torch   ONNX alone: half of what is to be fetched
    scripts/gpu.py --no-fetch   the libraries are there already, or the system's loader knows them

Without a network the wheels come from a folder (NATIVE_FROM=DIR, as for scripts/native.py) and the crates from cargo's own
cache or `cargo vendor`. Nothing is written to RESULTS.md unless every test passed.

Exit status: 0 all passed, 1 something failed, 3 this machine has no GPU that CUDA can use (nothing was run).
"""

import argparse
import ctypes
import datetime
import json
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches/RESULTS.md"
FOR_ONNX = ["onnxruntime-gpu", "cuda", "lightgbm"]
FOR_TORCH = ["torch", "torch-gpu"]
NO_GPU = 3
# The libraries are built for CUDA 13; an older driver cannot run them.
CUDA_OLDEST = 13000
CALLERS = "1,8,64"
SECONDS = 5
STARTS_WITHIN_S = 180


class NoGpu(Exception):
    """Why nothing here can be run."""


class Failed(Exception):
    """What went wrong on the way."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether this machine has a GPU")
    parser.add_argument("--no-bench", action="store_true", help="tests alone")
    parser.add_argument("--no-torch", action="store_true", help="leave TorchScript out")
    parser.add_argument("--no-fetch", action="store_true", help="take the libraries as they are")
    args = parser.parse_args()
    try:
        gpus = find_gpus()
    except NoGpu as why:
        say(f"this machine has no GPU that CUDA can use: {why}. Nothing was run.")
        return NO_GPU
    say(f"found {', '.join(gpus)}")
    if args.check:
        return 0
    try:
        if shutil.which("nvidia-smi") is None:
            raise Failed("nvidia-smi is not on the path; it comes with the driver, and the tests ask it for the GPU's memory")
        torch = not args.no_torch
        if not args.no_fetch:
            run([str(ROOT / "scripts/native.py"), *FOR_ONNX, *(FOR_TORCH if torch else [])])
        run([str(ROOT / "scripts/torch-plugin.sh"), "--workspace"] if torch else ["cargo", "build", "--release"])
        # One after another: they look at the memory of the whole GPU.
        tests = ["on_a_gpu", "devices", "--include-ignored", "--test-threads=1"]
        run(["cargo", "test", "--release", "--test", "it", "--", *tests], {} if torch else {"SCONCE_SKIP_TORCH": "1"})
        if not args.no_bench:
            append(figures(gpus, ["mlp", "volatility-transformer"] if torch else ["mlp"]))
    except Failed as failure:
        say(str(failure))
        return 1
    return 0


def find_gpus() -> "list[str]":
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoGpu("libcuda.so.1, NVIDIA's driver, is not installed")
    status = driver.cuInit(0)
    if status != 0:
        raise NoGpu(f"the driver shows none (CUDA error {status})")
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        raise NoGpu("the driver shows none (CUDA_VISIBLE_DEVICES may hide them)")
    if version.value < CUDA_OLDEST:
        found = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise NoGpu(f"its driver is for CUDA {found}, and 13.0 is needed: driver 580 or newer")
    names = []
    for number in range(count.value):
        name = ctypes.create_string_buffer(256)
        driver.cuDeviceGetName(name, len(name), number)
        names.append(name.value.decode(errors="replace"))
    return names


# === the figures ===


def figures(gpus: "list[str]", models: "list[str]") -> str:
    """Each model on the CPU and on the GPU, in one server, one after the other."""
    with tempfile.TemporaryDirectory(prefix="sconce-gpu-") as folder:
        store = Path(folder) / "store"
        for device in ("cpu", "cuda:0"):
            lay_down(store, device, models)
        with Server(store, Path(folder)) as server:
            loads = {}
            for model in models:
                for device in ("cpu", "cuda:0"):
                    loads[model, device] = server.bench(named(model, device))
            placed = {key: server.execution(named(*key)) for key in loads}
    for (model, device), execution in placed.items():
        if execution["device"] != device:
            raise Failed(f"{model} asked for {device} ran on {execution['device']}: the figures would lie")
    return table(gpus, models, loads, placed)


def table(gpus, models, loads, placed) -> str:
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [f"## {now}, on a GPU", "", f"{', '.join(gpus)}; {processor()}, commit {commit()}, {SECONDS} s a cell, one row a call", ""]
    head = ["model", "in flight", "CPU req/s", "p50 µs", "p99 µs", "batch", "GPU req/s", "p50 µs", "p99 µs", "batch", "GPU / CPU"]
    lines += [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    for model in models:
        for cpu, gpu in zip(loads[model, "cpu"], loads[model, "cuda:0"]):
            cells = [model, str(cpu["in_flight"]), *cell(cpu), *cell(gpu)]
            cells.append(f"{gpu['answered_per_s'] / cpu['answered_per_s']:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for model in models:
        taken = placed[model, "cuda:0"]["gpu_memory_bytes"]
        lines.append(f"{model} took {taken / (1 << 20):.0f} MiB of the GPU when it was opened ({placed[model, 'cuda:0']['library']}).")
    return "\n".join(lines) + "\n"


def cell(load) -> "list[str]":
    batch = (load["in_server"] or {}).get("batch_rows_mean")
    latency = load["latency_us"]
    return [
        f"{load['answered_per_s']:.0f}", f"{latency['p50']:.0f}", f"{latency['p99']:.0f}",
        "" if batch is None else f"{batch:.1f}",
    ]  # fmt: skip


def named(model: str, device: str) -> str:
    return f"{model}-{device.replace(':', '')}"


def lay_down(store: Path, device: str, models: "list[str]") -> None:
    mlp = store / named("mlp", device)
    (mlp / "1.0.0").mkdir(parents=True)
    (mlp / "1.0.0/model.onnx").write_bytes(mlp_onnx([256, 1024, 1024, 16]))
    (mlp / "model.yaml").write_text(f"instances: {{ count: 2, device: {device} }}\n")
    if "volatility-transformer" not in models:
        return
    sample = store / named("volatility-transformer", device)
    shutil.copytree(ROOT / "model-store/volatility-transformer", sample)
    own = (sample / "model.yaml").read_text()
    (sample / "model.yaml").write_text(f"{own}\ninstances: {{ count: 2, device: {device} }}\n")


def append(text: str) -> None:
    with RESULTS.open("a") as file:
        file.write("\n" + text)
    print(text)
    say(f"appended to {RESULTS.relative_to(ROOT)}; its line that nothing was run on a GPU is to be taken out")


# === the server ===


class Server:
    """`sconce serve` over a store, and the commands that ask it."""

    program = ROOT / "target/release/sconce"

    def __init__(self, store: Path, folder: Path):
        self.ports_file, self.log = folder / "ports.json", folder / "log"
        options = "--grpc-port=0 --grpc-admin-port=0 --http-port=0 --metrics-port=0 --child-time=120s --log-level=info".split()
        options += [f"--model-store={store}", f"--ports-file={self.ports_file}", f"--work-dir={folder / 'work'}"]
        self.environment = {**os.environ, "SCONCE_NATIVE_DIR": str(ROOT / "native")}
        self.process = subprocess.Popen(
            [self.program, "serve", *options], env=self.environment, stderr=self.log.open("w"), stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self.ports_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the server does not start:\n{self.log.read_text()}")
            time.sleep(0.05)
        self.ports = json.loads(self.ports_file.read_text())
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def execution(self, model: str) -> dict:
        address = f"127.0.0.1:{self.ports['grpc_admin']}"
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            shown = self.ask("describe", model, "--json", "--server", address)
            version = (json.loads(shown)["versions"] or [{}])[0] if shown else {}
            if version.get("state") == "ready":
                return version["execution"]
            if version.get("state") == "failed" or time.monotonic() > deadline:
                raise Failed(f"{model} does not serve: {version.get('reason')}: {version.get('message')}")
            time.sleep(0.2)

    def bench(self, model: str) -> "list[dict]":
        self.execution(model)
        say(f"measuring {model}")
        address = f"127.0.0.1:{self.ports['grpc']}"
        shown = self.ask("bench", model, "--json", "-c", CALLERS, "-d", f"{SECONDS}s", "--server", address)
        if not shown:
            raise Failed(f"calls of {model} failed:\n{self.log.read_text()[-2000:]}")
        return json.loads(shown)["loads"]

    def ask(self, *arguments: str) -> str:
        answer = subprocess.run([self.program, *arguments], env=self.environment, stdout=subprocess.PIPE, text=True)
        return answer.stdout if answer.returncode == 0 else ""


# === an ONNX model, by hand: no library that writes one is needed ===


def mlp_onnx(sizes: "list[int]") -> bytes:
    """Gemm and Relu in turn, FP32 [-1, sizes[0]] to [-1, sizes[-1]], with random weights that are always the same."""
    draw = random.Random(7)
    nodes, weights, last = b"", b"", "x"
    for layer, (rows, columns) in enumerate(zip(sizes, sizes[1:])):
        w, b, out = f"w{layer}", f"b{layer}", f"h{layer}"
        weights += field(5, floats(w, [rows, columns], [draw.gauss(0, rows**-0.5) for _ in range(rows * columns)]))
        weights += field(5, floats(b, [columns], [0.1] * columns))
        nodes += field(1, node("Gemm", [last, w, b], out))
        last = out
        if layer < len(sizes) - 2:
            nodes += field(1, node("Relu", [out], f"r{layer}"))
            last = f"r{layer}"
    nodes += field(1, node("Identity", [last], "y"))
    graph = nodes + field(2, b"mlp") + weights + field(11, value("x", sizes[0])) + field(12, value("y", sizes[-1]))
    return number(1, 8) + field(7, graph) + field(8, number(2, 13))


def node(operator: str, inputs: "list[str]", output: str) -> bytes:
    return b"".join(field(1, name.encode()) for name in inputs) + field(2, output.encode()) + field(4, operator.encode())


def floats(name: str, dims: "list[int]", values: "list[float]") -> bytes:
    shape = b"".join(number(1, dim) for dim in dims)
    return shape + number(2, 1) + field(8, name.encode()) + field(9, struct.pack(f"<{len(values)}f", *values))


def value(name: str, columns: int) -> bytes:
    shape = field(1, field(2, b"n")) + field(1, number(1, columns))
    return field(1, name.encode()) + field(2, field(1, number(1, 1) + field(2, shape)))


def field(tag: int, contents: bytes) -> bytes:
    return varint(tag << 3 | 2) + varint(len(contents)) + contents


def number(tag: int, amount: int) -> bytes:
    return varint(tag << 3) + varint(amount)


def varint(amount: int) -> bytes:
    encoded = b""
    while amount > 127:
        encoded += bytes([amount & 127 | 128])
        amount >>= 7
    return encoded + bytes([amount])


# === odds and ends ===


def run(command: "list[str]", more: "dict[str, str]" = {}) -> None:
    say(" ".join(command))
    environment = {**os.environ, "SCONCE_NATIVE_DIR": str(ROOT / "native"), **more}
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if status != 0:
        raise Failed(f"{command[0]} failed with {status}")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(': ', 1)[1]}, {os.cpu_count()} CPUs"
    return platform.machine()


def commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return asked.stdout.strip() or "unknown"


def say(text: str) -> None:
    print(f"gpu: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
