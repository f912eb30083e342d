"""Tests of an installed package: they know its name, and nothing of Warpsmith.

They are run from a folder of their own, with the name in WARPSMITH_PACKAGE; where there is none they are passed over.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

NAME = os.environ.get("WARPSMITH_PACKAGE", "")
if not NAME:
    collect_ignore_glob = ["test_*.py"]


def target() -> str:
    """What the package's kernels run on: `cpu` or `cuda`."""
    known = importlib.util.find_spec(NAME)
    assert known is not None
    assert known.origin is not None
    found: str = json.loads(Path(known.origin).with_name("provenance.json").read_text())["target"]
    return found


@pytest.fixture(scope="session", autouse=True)
def on_its_device() -> None:
    """Tensors and modules are made where the kernels are, in float16 for those of a GPU."""
    if not NAME or target() == "cpu":
        return
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU that PyTorch can use")
    torch.set_default_device("cuda")
    torch.set_default_dtype(torch.float16)


@pytest.fixture(scope="session")
def package() -> ModuleType:
    return importlib.import_module(NAME)


@pytest.fixture(scope="session")
def operators() -> Any:
    return importlib.import_module(f"{NAME}.operators")


@pytest.fixture(scope="session")
def calls() -> Any:
    return importlib.import_module(f"{NAME}.calls")


@pytest.fixture(autouse=True)
def served_by_a_kernel_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARPSMITH_FALLBACK", raising=False)


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code, or with `-m` a module, in a process of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = arguments if arguments[0] == "-m" else ("-c", *arguments)
        variables = {**os.environ, **environment}
        return subprocess.run([sys.executable, *given], capture_output=True, text=True, env=variables, check=False)

    return run
