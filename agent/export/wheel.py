"""One wheel from a composed tree, for any CPython from 3.10 on and PyTorch from 2.10 on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from agent.export import provenance
from sandbox.errors import Infrastructure
from sandbox.secrecy import without_keys


def build_wheel(root: Path, out: Path, timeout_s: float = 900) -> Path:
    """Build the tree's wheel into `out` with the g++ and PyTorch of this machine; the tree stays as it is.

    BadInput where `root` is no composed tree, Infrastructure where the build fails.
    """
    provenance.read(root)
    with tempfile.TemporaryDirectory(prefix="warpsmith-wheel-") as folder:
        tree, made = Path(folder) / "tree", Path(folder) / "made"
        shutil.copytree(root, tree)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(made)]
        try:
            done = subprocess.run(
                command,
                cwd=tree,
                env={**without_keys(), "PATH": path},
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise Infrastructure(f"building the wheel of {root.name} took longer than {timeout_s:g} s") from exc
        wheels = list(made.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise Infrastructure(f"the wheel of {root.name} was not built:\n{(done.stdout + done.stderr)[-4000:]}")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheels[0], out / wheels[0].name))


def verify_wheel(wheel: Path, package: str, timeout_s: float = 1800) -> tuple[bool | None, str]:
    """Whether the wheel's own `verify` passes here, and what it said; None where this machine lacks its device.

    It runs in a process and a folder of its own, from what is in the wheel alone.
    """
    with tempfile.TemporaryDirectory(prefix="warpsmith-verify-") as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        try:
            done = subprocess.run(
                [sys.executable, "-m", package, "verify", "--json"],
                cwd=folder,
                env={**without_keys(), "PYTHONPATH": folder},
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise Infrastructure(f"verifying {wheel.name} took longer than {timeout_s:g} s") from exc
    if not done.stdout:
        return False, f"{package} could not be verified, it ended with status {done.returncode}:\n{done.stderr[-4000:]}"
    return _said(json.loads(done.stdout))


def _said(report: dict[str, Any]) -> tuple[bool | None, str]:
    rows = report["rows"]
    wrong = [
        f"{row['task']}, {row['workload']}: {row['note'] or 'its error is too large'}" for row in rows if not row["ok"]
    ]
    made = [row for row in rows if row["by"]]
    if wrong:
        return False, f"{len(wrong)} of {len(rows)} calls are wrong: {'; '.join(wrong)}"
    if not made:
        return None, f"not verified here: {report['device']}"
    by_kernel = sum(row["by"] == "kernel" for row in made)
    return True, f"{len(made)} of {len(rows)} calls agree with float64, {by_kernel} of them answered by a kernel"
