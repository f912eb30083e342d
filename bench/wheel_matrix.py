"""One wheel in clean environments with one version of PyTorch each: what its own tests and `verify` say there.

    python -m bench.wheel_matrix WHEEL --torch 2.10.0 --torch 2.13.0 --torch 2.15.0 [--venvs FOLDER]

Each environment is made with the venv module and pip, if it is not there yet, and holds PyTorch, pytest and the wheel;
the tests are those of tests/agent/export/installed, copied out of the source tree. Not covered: GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "agent" / "export" / "installed"
RESULTS = Path(__file__).parent / "results"
NEEDED = ("pytest", "numpy")
LEGEND = """\
In each environment there are PyTorch, pytest and the wheel; the tests are run from a copy outside the source tree. They
cover opcheck, gradients, compiling with fullgraph, strided and odd inputs, the fallback, and refusals at import.
"""


class Outcome(BaseModel):
    """One environment."""

    torch: str
    """As it calls itself."""
    python: str
    tests: str
    """pytest's last line."""
    failures: list[str]
    compared: int
    """Calls that `verify` compared with float64."""
    agreed: int
    by_kernel: int
    ok: bool


class Matrix(BaseModel):
    command: str
    measured_at: str
    machine: str
    wheel: str
    tasks: list[str]
    outcomes: list[Outcome]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", action="append", required=True, help="a version; may be given several times")
    parser.add_argument("--venvs", type=Path, default=ROOT / "build" / "venvs", help="where environments are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    outcomes = []
    for version in given.torch:
        outcomes.append(outcome(environment(given.venvs, version), given.wheel.resolve()))
        print(f"PyTorch {outcomes[-1].torch}: {outcomes[-1].tests}", file=sys.stderr)
    matrix = Matrix(
        command=f"python -m bench.wheel_matrix {given.wheel.name} {' '.join(f'--torch {v}' for v in given.torch)}",
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        wheel=f"{given.wheel.name}, {given.wheel.stat().st_size / 2**20:.1f} MiB",
        tasks=tasks_of(environment(given.venvs, given.torch[0]), package_of(given.wheel)),
        outcomes=outcomes,
    )
    (given.out / "wheel_matrix.json").write_text(matrix.model_dump_json(indent=2) + "\n")
    (given.out / "wheel_matrix.md").write_text("\n".join(page(matrix)))
    sys.exit(not all(each.ok for each in outcomes))


def package_of(wheel: Path) -> str:
    return wheel.name.partition("-")[0]


def environment(folder: Path, version: str) -> Path:
    """The interpreter of the environment with this PyTorch, made where it is missing."""
    home = folder / f"torch-{version}"
    python = home / "bin" / "python"
    if not (home / ".made").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"torch=={version}", *NEEDED], check=True)
        (home / ".made").touch()
    return python


def outcome(python: Path, wheel: Path) -> Outcome:
    """The wheel installed anew, tested and verified."""
    package = package_of(wheel)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run(pip, check=True)
    with tempfile.TemporaryDirectory(prefix="warpsmith-matrix-") as scratch:
        tests = shutil.copytree(TESTS, Path(scratch) / "installed", ignore=shutil.ignore_patterns("__pycache__"))
        tested = run(
            python, tests, package, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--rootdir", ".", "."
        )
        verified = run(python, tests, package, "-m", package, "verify", "--json")
    last = (tested.stdout.strip().splitlines() or [tested.stderr.strip()])[-1]
    report: dict[str, Any] = json.loads(verified.stdout) if verified.stdout else {"rows": []}
    made = [row for row in report["rows"] if row["by"]]
    return Outcome(
        torch=ask(python, "import torch; print(torch.__version__)"),
        python=ask(python, "import platform; print(platform.python_version())"),
        tests=last.strip("= "),
        failures=re.findall(r"^FAILED (.+)$", tested.stdout, re.MULTILINE),
        compared=len(made),
        agreed=sum(row["ok"] for row in made),
        by_kernel=sum(row["by"] == "kernel" for row in made),
        ok=tested.returncode == 0 and verified.returncode == 0,
    )


def run(python: Path, cwd: Path, package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The environment's interpreter, which sees what is installed and nothing else."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    site = ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    env = {**known, "WARPSMITH_PACKAGE": package, "WARPSMITH_INSTALLED": str(Path(site).parent.parent)}
    return subprocess.run([str(python), *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def ask(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def tasks_of(python: Path, package: str) -> list[str]:
    return ask(python, f"from {package} import operators; print(*operators.NAMES)").split()


def page(matrix: Matrix) -> Iterator[str]:
    yield "# One wheel, several versions of PyTorch\n"
    yield f"- Wheel: `{matrix.wheel}`, with {', '.join(matrix.tasks)}"
    yield f"- Machine: {matrix.machine}"
    yield f"- Date: {matrix.measured_at[:16]} UTC"
    yield f"- Command: `{matrix.command}`\n"
    yield LEGEND
    yield "| PyTorch | Python | tests of the installed package | `verify`: agree with float64 | by a kernel |"
    yield "|---|---|---|---|---|"
    for each in matrix.outcomes:
        yield f"| {each.torch} | {each.python} | {each.tests} | {each.agreed} of {each.compared} | {each.by_kernel} |"
    yield from failures(matrix.outcomes)
    yield ""


def failures(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for each in outcomes:
        for failure in each.failures:
            yield f"\n- PyTorch {each.torch} failed: {failure}"


if __name__ == "__main__":
    main()
