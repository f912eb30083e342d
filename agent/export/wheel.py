"""One wheel from a composed tree, for any CPython from 3.10 on and PyTorch from 2.10 on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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
