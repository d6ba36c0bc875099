"""Where the server is, and its generated client.

SCONCE_GRPC, SCONCE_ADMIN, SCONCE_HTTP: host:port of a running server.
SCONCE_STORE: the folder of the model store that it serves. SCONCE_CORPUS: what make_onnx_corpus.py wrote.
A test that needs one which is not set fails: a run that tests nothing must not look like one that passed.
"""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
import grpc_tools
import pytest
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[3] / "proto"
MESSAGE_BYTES_MAX = 64 << 20


def setting(name):
    value = os.environ.get(name)
    if not value:
        pytest.fail(f"{name} is not set; see tests/clients/README.md", pytrace=False)
    return value


@pytest.fixture(scope="session")
def grpc_address():
    return setting("SCONCE_GRPC")


@pytest.fixture(scope="session")
def admin_address():
    return setting("SCONCE_ADMIN")


@pytest.fixture(scope="session")
def http_address():
    return setting("SCONCE_HTTP")


@pytest.fixture(scope="session")
def store():
    return Path(setting("SCONCE_STORE"))


@pytest.fixture(scope="session")
def corpus():
    return Path(setting("SCONCE_CORPUS"))


def open_channel(address):
    limits = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.max_send_message_length", MESSAGE_BYTES_MAX)]
    return grpc.insecure_channel(address, options=limits)


@pytest.fixture(scope="session")
def channel(grpc_address):
    with open_channel(grpc_address) as channel:
        yield channel


@pytest.fixture(scope="session")
def admin_channel(admin_address):
    with open_channel(admin_address) as channel:
        yield channel


@pytest.fixture(scope="session")
def sconce(tmp_path_factory):
    """The client of sconce.v1, generated from proto/: its messages and stubs as attributes."""
    out = tmp_path_factory.mktemp("generated")
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    files = ["sconce/v1/inference.proto", "sconce/v1/admin.proto"]
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, str(out))
    modules = [f"sconce.v1.{file}_pb2{kind}" for file in ("inference", "admin") for kind in ("", "_grpc")]
    found = {}
    for module in modules:
        found |= vars(importlib.import_module(module))
    return SimpleNamespace(**found)
