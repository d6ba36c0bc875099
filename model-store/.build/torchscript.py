"""How a TorchScript file is written here."""

import os
from pathlib import Path

import torch

# PyTorch writes a module's constants in the order of a Python set. Said before any training, not after it.
if os.environ.get("PYTHONHASHSEED") != "0":
    raise SystemExit("set PYTHONHASHSEED=0: the bytes of a TorchScript file depend on it")


def save_script(module: torch.nn.Module, path: Path) -> None:
    """Scripts and saves without the debug records, which hold the paths of the machine it was made on."""
    torch.jit.save(torch.jit.script(module), str(path))
    reader = torch._C.PyTorchFileReader(str(path))
    records = {name: reader.get_record(name) for name in reader.get_all_records()}
    del reader
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in records.items():
        # The writer adds `version` and everything under `.data` by itself.
        if name != "version" and not name.startswith(".data/") and not name.endswith(".debug_pkl"):
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
