#!/usr/bin/env python3
"""Fetch the native libraries into native/: ONNX Runtime, LightGBM, libtorch; for a GPU also their CUDA builds.

    scripts/native.py onnxruntime lightgbm torch     fetch these (all three when none is named)
    scripts/native.py onnxruntime-gpu cuda torch-gpu what a GPU takes besides (2.8 GB to fetch, 3.4 GB kept)
    scripts/native.py --from DIR torch               take the wheels from DIR, no network (also: NATIVE_FROM=DIR)

They come out of PyPI wheels, because wheels are mirrored everywhere and pip already knows this machine's index, proxy
and certificates. The pins below are exact and do not depend on the host's Python: the wheels are never installed, a few
of their files are unpacked. What counts is the sha256: a wheel from any index or folder is as good as another.

Safe to repeat (a stamp in each folder says what it was made from), to interrupt at any point (a folder appears whole or
not at all; wheels that arrived are kept in native/.wheels until they are unpacked) and to run twice at once (a lock).
"""

import argparse
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple


class Wheel(NamedTuple):
    pin: str  # as pip names it
    file: str
    bytes: int
    sha256: str
    keep: Dict[str, str]  # path in the wheel -> path in native/COMPONENT; one that ends in / is a folder


class Component(NamedTuple):
    wheels: Tuple[Wheel, ...]
    write: Dict[str, str]  # files we add
    links: Dict[str, str]  # symbolic links we add
    loads: str  # this must load, or the folder is not taken
    disk_bytes: int  # what the folder takes in the end


COMPONENTS = {
    "onnxruntime": Component(
        wheels=(
            Wheel(
                pin="onnxruntime==1.31.1",
                file="onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl",
                bytes=23753652,
                sha256="5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
                keep={
                    "onnxruntime/capi/libonnxruntime.so.1.31.1": "libonnxruntime.so.1.31.1",
                    "onnxruntime/capi/libonnxruntime_providers_shared.so": "libonnxruntime_providers_shared.so",
                    "onnxruntime/LICENSE": "LICENSE",
                    "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
                },
            ),
        ),
        write={},
        links={"libonnxruntime.so": "libonnxruntime.so.1.31.1"},
        loads="libonnxruntime.so",
        disk_bytes=30_000_000,
    ),
    "lightgbm": Component(
        wheels=(
            Wheel(
                pin="lightgbm==4.7.0",
                file="lightgbm-4.7.0-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
                bytes=3476028,
                sha256="d23e922acd891e77212e4d0fbcee9ba973c96dee479491341d05ba595357ebb7",
                keep={
                    "lightgbm/lib/lib_lightgbm.so": "lib_lightgbm.so",
                    "lightgbm-4.7.0.dist-info/licenses/LICENSE": "LICENSE",
                },
            ),
        ),
        write={},
        links={},
        loads="lib_lightgbm.so",
        disk_bytes=10_000_000,
    ),
    # What torch-sys expects of a libtorch folder, without the GPU half.
    "torch": Component(
        wheels=(
            Wheel(
                pin="torch==2.13.0",
                file="torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",
                bytes=526574961,
                sha256="60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
                keep={
                    "torch/include/": "include/",
                    "torch/lib/libc10.so": "lib/libc10.so",
                    "torch/lib/libtorch_cpu.so": "lib/libtorch_cpu.so",
                    "torch/lib/libgomp.so.1": "lib/libgomp.so.1",
                    "torch-2.13.0.dist-info/licenses/": "licenses/torch/",
                },
            ),
            # libtorch_cpu.so of this wheel links these two and does not load without them; it looks beside itself.
            Wheel(
                pin="nvidia-cuda-runtime==13.0.96",
                file="nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                bytes=2243632,
                sha256="7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                keep={
                    "nvidia/cu13/lib/libcudart.so.13": "lib/libcudart.so.13",
                    "nvidia_cuda_runtime-13.0.96.dist-info/licenses/": "licenses/nvidia-cuda-runtime/",
                },
            ),
            Wheel(
                pin="nvidia-cuda-cupti==13.0.85",
                file="nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
                bytes=10715597,
                sha256="4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
                keep={
                    "nvidia/cu13/lib/libcupti.so.13": "lib/libcupti.so.13",
                    "nvidia_cuda_cupti-13.0.85.dist-info/licenses/": "licenses/nvidia-cuda-cupti/",
                },
            ),
        ),
        write={
            # The wheel's own libtorch.so wants libtorch_cuda.so. This linker script sends -ltorch to the CPU half.
            "lib/libtorch.so": "INPUT(libtorch_cpu.so)\n",
            # torch-sys compares this with the version it was made for.
            "build-version": "2.13.0+cpu\n",
        },
        links={},
        loads="lib/libtorch_cpu.so",
        disk_bytes=490_000_000,
    ),
    # The build for CUDA 13, which runs models on the CPU as well: where it is, the server takes it for all.
    "onnxruntime-gpu": Component(
        wheels=(
            Wheel(
                pin="onnxruntime-gpu==1.31.1",
                file="onnxruntime_gpu-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl",
                bytes=255560985,
                sha256="e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6",
                keep={
                    "onnxruntime/capi/libonnxruntime.so.1.31.1": "libonnxruntime.so.1.31.1",
                    "onnxruntime/capi/libonnxruntime_providers_shared.so": "libonnxruntime_providers_shared.so",
                    "onnxruntime/capi/libonnxruntime_providers_cuda.so": "libonnxruntime_providers_cuda.so",
                    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": "libonnxruntime_providers_tensorrt.so",
                    "onnxruntime/LICENSE": "LICENSE",
                    "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
                },
            ),
        ),
        write={},
        links={"libonnxruntime.so": "libonnxruntime.so.1.31.1"},
        loads="libonnxruntime.so",
        disk_bytes=320_000_000,
    ),
    # NVIDIA's own libraries, for both. One folder: each looks for the others beside itself.
    "cuda": Component(
        wheels=(
            Wheel(
                pin="nvidia-cuda-runtime==13.0.96",
                file="nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                bytes=2243632,
                sha256="7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                keep={
                    "nvidia/cu13/lib/libcudart.so.13": "lib/libcudart.so.13",
                    "nvidia_cuda_runtime-13.0.96.dist-info/licenses/License.txt": "licenses/nvidia-cuda-runtime.txt",
                },
            ),
            Wheel(
                pin="nvidia-cublas==13.1.1.3",
                file="nvidia_cublas-13.1.1.3-py3-none-manylinux_2_27_x86_64.whl",
                bytes=423138758,
                sha256="37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436",
                keep={
                    "nvidia/cu13/lib/libcublas.so.13": "lib/libcublas.so.13",
                    "nvidia/cu13/lib/libcublasLt.so.13": "lib/libcublasLt.so.13",
                    "nvidia_cublas-13.1.1.3.dist-info/licenses/License.txt": "licenses/nvidia-cublas.txt",
                },
            ),
            Wheel(
                pin="nvidia-cudnn-cu13==9.20.0.48",
                file="nvidia_cudnn_cu13-9.20.0.48-py3-none-manylinux_2_27_x86_64.whl",
                bytes=366173588,
                sha256="0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304",
                keep={
                    "nvidia/cudnn/lib/": "lib/",
                    "nvidia_cudnn_cu13-9.20.0.48.dist-info/licenses/License.txt": "licenses/nvidia-cudnn-cu13.txt",
                },
            ),
            Wheel(
                pin="nvidia-cufft==12.0.0.61",
                file="nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                bytes=214085489,
                sha256="6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
                keep={
                    "nvidia/cu13/lib/libcufft.so.12": "lib/libcufft.so.12",
                    "nvidia_cufft-12.0.0.61.dist-info/licenses/License.txt": "licenses/nvidia-cufft.txt",
                },
            ),
            Wheel(
                pin="nvidia-curand==10.4.0.35",
                file="nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
                bytes=59544258,
                sha256="1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
                keep={
                    "nvidia/cu13/lib/libcurand.so.10": "lib/libcurand.so.10",
                    "nvidia_curand-10.4.0.35.dist-info/licenses/License.txt": "licenses/nvidia-curand.txt",
                },
            ),
            Wheel(
                pin="nvidia-cuda-nvrtc==13.0.88",
                file="nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
                bytes=90215200,
                sha256="ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
                keep={
                    "nvidia/cu13/lib/libnvrtc.so.13": "lib/libnvrtc.so.13",
                    "nvidia/cu13/lib/libnvrtc-builtins.so.13.0": "lib/libnvrtc-builtins.so.13.0",
                    "nvidia_cuda_nvrtc-13.0.88.dist-info/licenses/License.txt": "licenses/nvidia-cuda-nvrtc.txt",
                },
            ),
            Wheel(
                pin="nvidia-nvjitlink==13.0.88",
                file="nvidia_nvjitlink-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
                bytes=40713933,
                sha256="13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
                keep={
                    "nvidia/cu13/lib/libnvJitLink.so.13": "lib/libnvJitLink.so.13",
                    "nvidia_nvjitlink-13.0.88.dist-info/licenses/License.txt": "licenses/nvidia-nvjitlink.txt",
                },
            ),
        ),
        write={},
        links={},
        loads="lib/libcublas.so.13",
        disk_bytes=1_750_000_000,
    ),
    # The half of libtorch that "torch" leaves out, and what it alone needs. Not beside the rest: torch-sys would link it.
    "torch-gpu": Component(
        wheels=(
            Wheel(
                pin="torch==2.13.0",
                file="torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",
                bytes=526574961,
                sha256="60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
                keep={
                    "torch/lib/libc10_cuda.so": "lib/libc10_cuda.so",
                    "torch/lib/libtorch_cuda.so": "lib/libtorch_cuda.so",
                    "torch/lib/libtorch_cuda_linalg.so": "lib/libtorch_cuda_linalg.so",
                    "torch/lib/libtorch_nvshmem.so": "lib/libtorch_nvshmem.so",
                    "torch/lib/libcaffe2_nvrtc.so": "lib/libcaffe2_nvrtc.so",
                },
            ),
            Wheel(
                pin="nvidia-cusparse==12.6.3.3",
                file="nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                bytes=145942937,
                sha256="2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
                keep={
                    "nvidia/cu13/lib/libcusparse.so.12": "lib/libcusparse.so.12",
                    "nvidia_cusparse-12.6.3.3.dist-info/licenses/License.txt": "licenses/nvidia-cusparse.txt",
                },
            ),
            Wheel(
                pin="nvidia-cusolver==12.0.4.66",
                file="nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl",
                bytes=200941980,
                sha256="0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
                keep={
                    "nvidia/cu13/lib/libcusolver.so.12": "lib/libcusolver.so.12",
                    "nvidia_cusolver-12.0.4.66.dist-info/licenses/License.txt": "licenses/nvidia-cusolver.txt",
                },
            ),
            Wheel(
                pin="nvidia-cusparselt-cu13==0.8.1",
                file="nvidia_cusparselt_cu13-0.8.1-py3-none-manylinux2014_x86_64.whl",
                bytes=170148586,
                sha256="786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0",
                keep={
                    "nvidia/cusparselt/lib/libcusparseLt.so.0": "lib/libcusparseLt.so.0",
                    "nvidia/cusparselt/LICENSE.txt": "licenses/nvidia-cusparselt-cu13.txt",
                },
            ),
            Wheel(
                pin="nvidia-nccl-cu13==2.29.7",
                file="nvidia_nccl_cu13-2.29.7-py3-none-manylinux_2_18_x86_64.whl",
                bytes=205976000,
                sha256="edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d",
                keep={
                    "nvidia/nccl/lib/libnccl.so.2": "lib/libnccl.so.2",
                    "nvidia_nccl_cu13-2.29.7.dist-info/licenses/License.txt": "licenses/nvidia-nccl-cu13.txt",
                },
            ),
            Wheel(
                pin="nvidia-nvshmem-cu13==3.4.5",
                file="nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                bytes=60412546,
                sha256="290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
                keep={
                    "nvidia/nvshmem/lib/libnvshmem_host.so.3": "lib/libnvshmem_host.so.3",
                    "nvidia_nvshmem_cu13-3.4.5.dist-info/licenses/License.txt": "licenses/nvidia-nvshmem-cu13.txt",
                },
            ),
            Wheel(
                pin="nvidia-cufile==1.15.1.6",
                file="nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                bytes=1223672,
                sha256="08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
                keep={
                    "nvidia/cu13/lib/libcufile.so.0": "lib/libcufile.so.0",
                    "nvidia_cufile-1.15.1.6.dist-info/licenses/License.txt": "licenses/nvidia-cufile.txt",
                },
            ),
        ),
        write={},
        links={},
        loads="lib/libnccl.so.2",
        disk_bytes=1_400_000_000,
    ),
}

# Fetched where they are asked for by name.
FOR_A_GPU = ("onnxruntime-gpu", "cuda", "torch-gpu")

# The pins name wheels for CPython 3.11; nothing is installed, so pip may fetch them with any Python.
PIP_TARGET = ["--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
PIP_TARGET += ["--abi=cp311", "--abi=none"]
PIP_TARGET += [f"--platform=manylinux{v}_x86_64" for v in ("_2_28", "_2_27", "_2_25", "_2_18", "_2_17", "_2_12", "2014")]


class Failed(Exception):
    """What is missing, and the command that gets it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("components", nargs="*", metavar="COMPONENT", help=f"{', '.join(COMPONENTS)} (default: those for the CPU)")
    parser.add_argument("--from", dest="wheels", metavar="DIR", default=os.environ.get("NATIVE_FROM") or None)
    parser.add_argument("--dest", metavar="DIR", default=Path(__file__).resolve().parent.parent / "native")
    args = parser.parse_args()
    unknown = [name for name in args.components if name not in COMPONENTS]
    if unknown:
        parser.error(f"no component {', '.join(unknown)}: there are {', '.join(COMPONENTS)}")
    # A `kill` must also reach pip, so it takes the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = args.components or [name for name in COMPONENTS if name not in FOR_A_GPU]
    dest = Path(args.dest).absolute()
    offline = Path(args.wheels).absolute() if args.wheels else None
    try:
        if offline:
            require_wheels([n for n in names if not is_present(COMPONENTS[n], dest / n)], offline)
        for name in names:
            provide(name, dest, offline)
    except Failed as failure:
        print(f"native: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("native: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


def provide(name: str, dest: Path, offline: "Path | None") -> None:
    component, folder = COMPONENTS[name], dest / name
    if is_present(component, folder):
        say(f"{name} is there ({pins(component)})")
        return
    dest.mkdir(parents=True, exist_ok=True)
    with lock(dest / f".lock-{name}", name):
        if is_present(component, folder):  # another run has done it while this one waited
            say(f"{name} is there ({pins(component)})")
            return
        began = time.monotonic()
        check_space(component, dest, offline)
        wheels = [(wheel, obtain(wheel, dest / ".wheels", offline)) for wheel in component.wheels]
        unpack(component, wheels, folder)
        if not offline:
            for _, path in wheels:
                path.unlink()
        say(f"{name} is ready in {folder} after {time.monotonic() - began:.1f} s")


# === one wheel: from the cache, a folder or pip, and always checked ===


def require_wheels(names: List[str], offline: Path) -> None:
    """Names all that is missing at once: who carries files by hand wants to walk once."""
    missing = [wheel for name in names for wheel in COMPONENTS[name].wheels if not (offline / wheel.file).is_file()]
    if missing:
        files = "".join(f"\n  {wheel.file}" for wheel in missing)
        raise Failed(f"{offline} lacks{files}\nget them on a machine with a network:\n  {pip_command(missing, offline)}")


def obtain(wheel: Wheel, cache: Path, offline: "Path | None") -> Path:
    if offline:
        given = offline / wheel.file
        say(f"{wheel.file} from {offline}")
        require_sha256(wheel, given, f"replace it: {pip_command([wheel], offline)}")
        return given
    kept = cache / wheel.file
    if kept.is_file():  # it was checked before it came here; once more, as disks fill up and people copy files
        if sha256(kept) == wheel.sha256:
            say(f"{wheel.file} arrived in an earlier run")
            return kept
        say(f"{wheel.file} from an earlier run is damaged: fetching it again")
        kept.unlink()
    cache.mkdir(parents=True, exist_ok=True)
    say(f"fetching {wheel.pin}, {wheel.bytes / 1e6:.0f} MB")
    part_prefix = f".part-{wheel.file.split('-')[0]}-"
    for stale in cache.glob(f"{part_prefix}*"):  # what a killed run left
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=part_prefix, dir=cache) as part:
        run_pip(wheel, Path(part))
        arrived = Path(part) / wheel.file
        if not arrived.is_file():
            there = ", ".join(sorted(path.name for path in Path(part).glob("*.whl"))) or "nothing"
            raise Failed(f"this index has another build of {wheel.pin}: wanted {wheel.file}, got {there}")
        require_sha256(wheel, arrived, "the index serves other bytes under this name: python3 -m pip config list")
        arrived.rename(kept)
    return kept


def run_pip(wheel: Wheel, part: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise Failed(f"{sys.executable} has no pip: sudo apt-get install python3-pip  (or: sudo dnf install python3-pip)")
    # pip's own temporary copy lies beside ours: /tmp is often a small RAM disk, and what is killed is swept up next time.
    env = {**os.environ, "TMPDIR": str(part), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", "download", *PIP_TARGET, "--dest", str(part), wheel.pin]
    child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
    try:
        status = child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    if status != 0:
        raise Failed(
            f"pip could not fetch {wheel.pin}; its reason stands above.\n"
            "  its index, proxy and certificate settings hold here: python3 -m pip config list\n"
            f"  without a network, fetch it elsewhere: {pip_command([wheel], Path('wheels'))}\n"
            "  and give the folder: NATIVE_FROM=wheels"
        )


def end_with_parent() -> None:
    """A killed fetch must not leave a pip behind that goes on downloading (prctl PR_SET_PDEATHSIG = 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def pip_command(wheels: List[Wheel], folder: Path) -> str:
    pinned = [wheel.pin for wheel in wheels]
    return shlex.join(["python3", "-m", "pip", "download", *PIP_TARGET, "--dest", str(folder), *pinned])


def require_sha256(wheel: Wheel, path: Path, remedy: str) -> None:
    actual = sha256(path)
    if actual != wheel.sha256:
        raise Failed(
            f"{path} is not the wheel that is pinned\n"
            f"  expected sha256 {wheel.sha256}\n"
            f"  got      sha256 {actual}\n"
            f"  {remedy}"
        )


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# === one folder: made beside its place, tried, then renamed into it ===


def unpack(component: Component, wheels: List[Tuple[Wheel, Path]], folder: Path) -> None:
    fresh, old = folder.with_name(f".fresh-{folder.name}"), folder.with_name(f".old-{folder.name}")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for wheel, path in wheels:
        extract(wheel, path, fresh)
    for name, text in component.write.items():
        (fresh / name).write_text(text)
    for name, target in component.links.items():
        (fresh / name).symlink_to(target)
    if folder.name == "lightgbm":
        copy_libgomp(fresh)
    try_to_load(fresh / component.loads)
    (fresh / ".pins").write_text(stamp(component))
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def extract(wheel: Wheel, path: Path, fresh: Path) -> None:
    say(f"unpacking {wheel.file}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for source, target in wheel.keep.items():
            is_folder = source.endswith("/")
            for member in [n for n in names if n.startswith(source) and not n.endswith("/")] if is_folder else [source]:
                # The sha256 was checked, so the names inside are the ones that were looked at when it was pinned.
                place = fresh / (target + member[len(source) :])
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, place.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)


def copy_libgomp(fresh: Path) -> None:
    """lib_lightgbm.so needs libgomp.so.1, and its wheel has none. Every g++ package brings one; its copy makes this folder
    complete, so that it also serves on a machine without a compiler. With no g++ here, the system's must do."""
    try:
        asked = subprocess.run(["g++", "-print-file-name=libgomp.so.1"], stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        return
    path = Path(asked.stdout.strip())
    if path.is_absolute() and path.is_file():
        shutil.copyfile(path, fresh / "libgomp.so.1")


def try_to_load(library: Path) -> None:
    """Loads it in a child: a library that cannot be loaded is told now, not at the first model."""
    program = "import ctypes, os, sys; [ctypes.CDLL(p) for p in sys.argv[1:] if os.path.exists(p)]"
    tried = subprocess.run(
        [sys.executable, "-c", program, str(library.with_name("libgomp.so.1")), str(library)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if tried.returncode == 0:
        return
    reason = (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]
    remedy = "this system cannot load it"
    if "libgomp" in reason:
        remedy = "sudo apt-get install libgomp1  (or: sudo dnf install libgomp)"
    raise Failed(f"{library.name} does not load here: {reason}\n  {remedy}")


# === what is there, and who is at it ===


def is_present(component: Component, folder: Path) -> bool:
    try:
        return (folder / ".pins").read_text() == stamp(component) and (folder / component.loads).exists()
    except OSError:
        return False


def stamp(component: Component) -> str:
    """Changes when a pin, or what is kept of a wheel, changes."""
    return f"{pins(component)}\n{hashlib.sha256(repr(component).encode()).hexdigest()}\n"


def pins(component: Component) -> str:
    return ", ".join(wheel.pin for wheel in component.wheels)


class lock:
    """Held for as long as this process lives at most: the kernel lets go of it, however the process ends."""

    def __init__(self, path: Path, name: str):
        self.file = path.open("w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is fetching {name}: waiting for it")
            fcntl.flock(self.file, fcntl.LOCK_EX)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.file.close()


def check_space(component: Component, dest: Path, offline: "Path | None") -> None:
    download = 0 if offline else 2 * sum(wheel.bytes for wheel in component.wheels)  # pip keeps a second copy for a moment
    need, free = component.disk_bytes + download, shutil.disk_usage(dest).free
    if free < need:
        raise Failed(f"{dest} has {free / 1e6:.0f} MB free and {need / 1e6:.0f} MB are needed: make room there")


def say(text: str) -> None:
    print(f"native: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
