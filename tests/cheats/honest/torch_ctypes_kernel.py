# honest: a C kernel that the module compiles itself and calls through ctypes
# task: vector_add   target: cpu
# accepted: yes
import ctypes
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = """
void add(float* out, const float* a, const float* b, long count) {
    for (long i = 0; i < count; ++i) out[i] = a[i] + b[i];
}
"""


class ModelNew(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        folder = Path(tempfile.mkdtemp())
        (folder / "add.c").write_text(SOURCE)
        subprocess.run(["gcc", "-O3", "-shared", "-fPIC", "-o", folder / "add.so", folder / "add.c"], check=True)
        self.add = ctypes.CDLL(str(folder / "add.so")).add

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(a)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (out, a, b)]
        self.add(*pointers, ctypes.c_long(a.numel()))
        return out
