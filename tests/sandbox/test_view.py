"""What of this machine a sandboxed process sees."""

import os
import subprocess
from pathlib import Path

from sandbox import view


def test_ninja_is_seen_by_workers_with_torch_wherever_pip_has_put_it() -> None:
    binds = {target: source for source, target in view.of_host("torch").binds.items()}
    ninja = binds["/warpsmith/bin/ninja"]
    assert os.access(ninja, os.X_OK)
    assert subprocess.run([ninja, "--version"], capture_output=True, check=True).stdout


def test_workers_without_torch_see_neither_packages_nor_ninja() -> None:
    targets = [Path(target) for target in view.of_host("bare").binds.values()]
    assert not any(target.is_relative_to(view.HOME / place) for target in targets for place in ("packages", "bin"))
