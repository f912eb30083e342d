"""What every test starts from: none of the user's configuration, no colours, and a small task of its own."""

import os
from pathlib import Path

import pytest

from agent.config import PREFIX

TASK_TOML = """\
name = "toy"
summary = "a + b"
axes = ["N"]
bytes = "3*N*itemsize"
flops = "N"
outputs = [{ name = "out", shape = ["N"] }]
inputs = [{ name = "a", shape = ["N"] }, { name = "b", shape = ["N"] }]

[cpu]
workloads = [{ axes = { N = 1000 } }, { axes = { N = 4096 } }]
held_out = [{ axes = { N = 77 } }]
"""

PLAIN = """\
// 1: one loop.
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {
    for (int64_t i = 0; i < N; ++i) out[i] = a[i] + b[i];
}
"""

TUNABLE = """\
// 2: blocks of BLOCK elements, UNROLL at a time.
#ifndef BLOCK
#define BLOCK 64  // tune: 16 32 64 128
#endif
#ifndef UNROLL
#define UNROLL 1  // tune: 1 2 4
#endif
// tune-if: BLOCK*UNROLL <= 256
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {
    for (int64_t i = 0; i < N; ++i) out[i] = a[i] + b[i];
}
"""


@pytest.fixture(autouse=True)
def clean_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    # Of a terminal that is none: pytest's workers have them.
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    """A task folder named toy for the cpu target: one seed without tunables, two with."""
    folder = tmp_path / "seeds" / "toy"
    (folder / "cpu").mkdir(parents=True)
    (folder / "task.toml").write_text(TASK_TOML)
    (folder / "reference.py").write_text("def reference(a, b):\n    return a + b\n")
    (folder / "cpu" / "1_plain.cpp").write_text(PLAIN)
    (folder / "cpu" / "2_blocked.cpp").write_text(TUNABLE)
    (folder / "cpu" / "10_other.cpp").write_text(TUNABLE.replace("// 2: blocks", "// 10: other blocks"))
    return folder
