"""Local workers, fenced and not: what they are made of, and that they can be held and ended."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sandbox import launch, view
from sandbox.devices import detect
from sandbox.errors import EngineUnreachable, WorkerLost
from sandbox.launch import Order
from sandbox.local import LocalLauncher, missing_for_fence
from sandbox.peer import Peer, PeerDied
from sandbox.toolchain import Toolchain

ROOT = Path(__file__).parents[2]
ORDER = Order(detect("cpu"), 4 << 30)
fences = pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "unfenced"])


@pytest.fixture
def launcher(fenced: bool) -> Iterator[LocalLauncher]:
    if fenced and (missing := missing_for_fence()):
        pytest.skip(missing)
    with contextlib.closing(LocalLauncher(fenced)) as launcher:
        yield launcher


@pytest.fixture
def fenced_peer() -> Iterator[Peer]:
    if missing := missing_for_fence():
        pytest.skip(missing)
    with LocalLauncher(True).worker(ORDER) as worker:
        yield worker.peer


def wait_for(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def load(peer: Peer, toolchain: Toolchain, source: str) -> dict[str, object]:
    """Have the worker load a library, which runs its static initialisers."""
    library = toolchain.build(f'{source}\nextern "C" void k() {{}}', "cpu", {}, "x86_64").path
    with library.open("rb") as file:
        return peer.ask("load", 10, [file.fileno()], key="k", entry="k")


# ---------------------------------------------------------------- starting and ending


@fences
def test_worker_is_ready_and_leaves_nothing(launcher: LocalLauncher) -> None:
    with launcher.worker(ORDER) as worker:
        pids = worker.peer.processes()
        assert all(map(lives, pids))
    assert not any(map(lives, pids))
    assert worker.scratch is None or not Path(worker.scratch).exists()


@fences
def test_worker_that_nobody_enters_is_ended_too(launcher: LocalLauncher) -> None:
    worker = launcher.worker(ORDER)
    pids = worker.peer.processes()
    worker.__exit__(None, None, None)
    assert not any(map(lives, pids))


@fences
def test_daemon_cannot_leave(launcher: LocalLauncher, tmp_path: Path) -> None:
    source = """
    #include <unistd.h>
    static int ours = [] {
        if (fork() == 0) { setsid(); if (fork() == 0) { setsid(); for (;;) sleep(99); } _exit(0); }
        return 0;
    }();
    """
    with Toolchain(tmp_path) as toolchain, launcher.worker(ORDER) as worker:
        before = worker.peer.processes()
        load(worker.peer, toolchain, source)
        wait_for(lambda: len(worker.peer.processes()) == len(before) + 1)
        pids = worker.peer.processes()
    assert not any(map(lives, pids))


@fences
def test_sibling_cannot_hide_from_the_family(launcher: LocalLauncher, tmp_path: Path) -> None:
    """CLONE_PARENT makes a child of one's own parent."""
    source = """
    #include <csignal>
    #include <linux/sched.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int sibling = [] {
        if (syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) == 0) for (;;) sleep(99);
        return 0;
    }();
    """
    with Toolchain(tmp_path) as toolchain, launcher.worker(ORDER) as worker:
        before = len(worker.peer.processes())
        load(worker.peer, toolchain, source)
        wait_for(lambda: len(worker.peer.processes()) == before + 1)
        pids = worker.peer.processes()
    assert not any(map(lives, pids))


@fences
def test_way_a_worker_ends_is_told(launcher: LocalLauncher, tmp_path: Path) -> None:
    with (
        Toolchain(tmp_path) as toolchain,
        launcher.worker(ORDER) as worker,
        pytest.raises(PeerDied, match="killed by SIGABRT"),
    ):
        load(worker.peer, toolchain, "#include <cstdlib>\nstatic int dead = (abort(), 0);")


@fences
def test_tool_comes_before_the_worker_and_reports_into_the_shared_folder(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    script = 'echo "$3" > /out/report; exec "$@"'
    order = Order(ORDER.device, ORDER.memory_bytes, tool=("sh", "-c", script, "sh"), shared=tmp_path)
    with launcher.worker(order) as worker:
        assert worker.peer.processes()
    assert (tmp_path / "report").read_text() == "-B\n"


@fences
def test_worker_that_cannot_start_says_why(launcher: LocalLauncher) -> None:
    order = Order(ORDER.device, ORDER.memory_bytes, tool=("sh", "-c", "echo no such tool >&2; exit 3"))
    with pytest.raises(WorkerLost, match=r"(?s)code 3.*no such tool"), launcher.worker(order):
        pass


# ---------------------------------------------------------------- holding


@fences
def test_frozen_worker_uses_no_time_and_goes_on_afterwards(launcher: LocalLauncher, tmp_path: Path) -> None:
    busy = """
    #include <thread>
    #include <unistd.h>
    static int spinning = [] {
        std::thread([] { for (;;) asm volatile(""); }).detach();
        if (fork() == 0) for (;;) asm volatile("");
        return 0;
    }();
    """
    with Toolchain(tmp_path) as toolchain, launcher.worker(ORDER) as worker:
        threads = worker.peer.threads()
        load(worker.peer, toolchain, busy)
        assert worker.peer.threads() == threads + 2
        worker.peer.freeze()
        before = worker.peer.cpu_seconds()
        time.sleep(0.1)
        assert worker.peer.cpu_seconds() == before
        worker.peer.thaw()
        time.sleep(0.2)
        assert worker.peer.cpu_seconds() > before + 0.05


@fences
def test_holding_takes_less_than_a_millisecond(launcher: LocalLauncher) -> None:
    with launcher.worker(ORDER) as worker:
        took = []
        for _ in range(50):
            started = time.perf_counter()
            worker.peer.freeze()
            worker.peer.thaw()
            took.append(time.perf_counter() - started)
            time.sleep(0.001)
    assert sorted(took)[10] < 1e-3


def test_processes_that_keep_forking_come_to_a_stop(tmp_path: Path, fenced_peer: Peer) -> None:
    source = """
    #include <unistd.h>
    static int breeding = [] {
        if (fork() == 0) for (int n = 0; ; ++n) { if (fork() == 0) { usleep(200); _exit(0); } usleep(100); }
        return 0;
    }();
    """
    with Toolchain(tmp_path) as toolchain:
        load(fenced_peer, toolchain, source)
    fenced_peer.freeze()
    frozen = fenced_peer.processes()
    time.sleep(0.05)
    assert fenced_peer.processes() == frozen


def test_processes_of_one_worker_are_not_counted_against_the_next(tmp_path: Path, fenced_peer: Peer) -> None:
    source = """
    #include <unistd.h>
    static int bred = [] {
        for (;;) { int pid = fork(); if (pid < 0) return 0; if (pid == 0) for (;;) sleep(99); }
    }();
    """
    with Toolchain(tmp_path) as toolchain:
        load(fenced_peer, toolchain, source)
    with LocalLauncher(True).worker(ORDER) as worker:
        assert worker.peer.processes()


# ---------------------------------------------------------------- the fence


def test_fenced_worker_has_no_rights_no_network_and_a_root_of_its_own(fenced_peer: Peer) -> None:
    pid = fenced_peer.processes()[-1]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    if os.getuid() == 0:
        (user,) = set(status["Uid"].split())
        assert 61_184 <= int(user) < 65_520
    interfaces = [line.split(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]]
    assert interfaces == ["lo"]
    root = {path.name for path in Path(f"/proc/{pid}/root").iterdir()}
    assert root <= {
        "bin",
        "dev",
        "etc",
        "lib",
        "lib64",
        "opt",
        "proc",
        "sys",
        "tmp",
        "usr",
        "warpsmith",
        "root",
        "home",
    }
    assert not Path(f"/proc/{pid}/root{ROOT}").exists()


def test_fenced_worker_sees_a_few_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    if missing := missing_for_fence():
        pytest.skip(missing)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with LocalLauncher(True).worker(ORDER) as worker:
        for pid in worker.peer.processes():
            assert b"sk-test" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_checkout_below_a_mounted_folder_is_hidden() -> None:
    assert list(view._hidden({str(ROOT.parent): "/seen"})) == [f"/seen/{ROOT.name}"]
    assert list(view._hidden({"/usr/share": "/usr/share"})) == []


# ---------------------------------------------------------------- choosing


def test_local_never_asks_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "engine"))
        engine.listen()
        engine.settimeout(0.2)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine")
        launcher, why = launch.choose("local")
        launcher.close()
        with pytest.raises(TimeoutError):
            engine.accept()
    assert launcher.name in ("namespaces", "local")
    assert "NO CONTAINER" in why


def test_auto_without_an_engine_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    launcher, why = launch.choose("auto")
    launcher.close()
    assert isinstance(launcher, LocalLauncher)
    assert "Docker cannot be used" in why
    assert "unix:///nowhere/docker.sock" in why
    assert "NO CONTAINER" in why


def test_docker_without_an_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(EngineUnreachable, match=r"no Docker engine answers at unix:///nowhere/docker\.sock"):
        launch.choose("docker")


def test_engine_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(EngineUnreachable, match=r"tcp://127\.0\.0\.1:1.*wanted one of this machine"):
        launch.choose("docker")
