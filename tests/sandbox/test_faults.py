"""Faults, each for real and in both sandboxes: what a candidate does to its surroundings, and what happens to them.

After every one the next candidate is judged as if nothing had been, and no process, container or folder is left.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from sandbox import launch, owner
from sandbox.contract import BuildFailed, Candidate, LaunchFailed, Passed, Task, TensorSpec, TimedOut, Verdict, Workload
from sandbox.devices import detect
from sandbox.errors import Infrastructure, WorkerLost
from sandbox.judge import Judge
from sandbox.launch import Launcher
from sandbox.toolchain import Toolchain

ROOT = Path(__file__).parents[2]
REFERENCE = "def reference(x):\n    return x + 1\n"
HEADERS = """\
#include <arpa/inet.h>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <string>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
"""
HONEST = "for (int64_t i = 0; i < N; ++i) out[i] = x[i] + 1;"

sandboxes = [pytest.param("docker", marks=pytest.mark.docker), "local"]


def candidate(body: str, before: str = "") -> Candidate:
    """A kernel of the task below with the given body."""
    head = 'extern "C" void plus(float* out, const float* x, int64_t N, void* workspace)'
    source = f"{HEADERS}{before}\n{head} {{ {body} }}\n"
    return Candidate(task="plus", target="cpu", source=source, operator="import", proposer="test")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("plus")
    (folder / "reference.py").write_text(REFERENCE)
    return Task(
        name="plus",
        version="1",
        summary="x + 1",
        target="cpu",
        axes=("N",),
        outputs=(TensorSpec(name="out", shape=("N",)),),
        inputs=(TensorSpec(name="x", shape=("N",)),),
        workloads=(Workload(axes={"N": 4096}),),
        held_out=(Workload(axes={"N": 77}),),
        bytes_moved="2*N*itemsize",
        flops="N",
        folder=folder,
    )


@pytest.fixture(scope="module", params=sandboxes)
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    with contextlib.closing(launch.choose(request.param)[0]) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def judge(launcher: Launcher, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with (
        Toolchain(tmp_path_factory.mktemp("cache"), launcher=launcher) as toolchain,
        Judge(detect("cpu"), toolchain, launcher, call_timeout_s=2.0) as judge,
    ):
        judge.open(task)
        assert isinstance(judge.judge(task, candidate(HONEST)).verdict, Passed)
        yield judge


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """The next candidate passes, and nothing is left of the last one."""
    if "judge" not in request.fixturenames:
        yield
        return
    judge, task = request.getfixturevalue("judge"), request.getfixturevalue("task")
    before = surroundings()
    yield
    wait_for(lambda: surroundings() <= before, lambda: f"{before} before, {surroundings()} after")
    assert isinstance(judge.judge(task, candidate(HONEST, f"// after {request.node.name}")).verdict, Passed)


class Surroundings(NamedTuple):
    """How much there is of what a candidate could leave behind; workers that wait for the next one are part of it."""

    processes: int
    containers: int
    folders: int

    def __le__(self, other: Any) -> bool:
        return all(own <= others for own, others in zip(self, other, strict=True))


def surroundings() -> Surroundings:
    folders = list(Path(tempfile.gettempdir()).glob(f"warpsmith-*{owner.this_program()}/*"))
    return Surroundings(len(psutil.Process().children(recursive=True)), len(containers()), len(folders))


def containers() -> list[str]:
    """The containers of this program."""
    if shutil.which("docker") is None:
        return []
    label = f"label=warpsmith.owner={owner.this_program()}"
    return subprocess.run(["docker", "ps", "-aq", "--filter", label], capture_output=True, text=True).stdout.split()


def wait_for(condition: Callable[[], bool], what: Callable[[], str], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def verdict(judge: Judge, task: Task, body: str, before: str = "") -> Verdict:
    started = time.monotonic()
    found = judge.judge(task, candidate(body, before)).verdict
    assert time.monotonic() - started < 60
    return found


# ---------------------------------------------------------------- what a candidate does


def test_endless_loop_is_stopped(judge: Judge, task: Task) -> None:
    assert isinstance(verdict(judge, task, 'for (;;) asm volatile("");'), TimedOut)


def test_loop_that_ignores_every_signal_is_stopped(judge: Judge, task: Task) -> None:
    body = 'for (int s = 1; s < 65; ++s) signal(s, SIG_IGN); for (;;) asm volatile("");'
    assert isinstance(verdict(judge, task, body), TimedOut)


def test_fork_bomb_burns_out(judge: Judge, task: Task) -> None:
    assert not isinstance(verdict(judge, task, f"for (;;) if (fork() < 0) usleep(1000); {HONEST}"), Passed)


def test_daemon_that_leaves_its_session_and_its_parent_is_gone(judge: Judge, task: Task) -> None:
    daemon = "if (fork() == 0) { setsid(); if (fork() == 0) { setsid(); for (;;) sleep(1000); } _exit(0); }"
    verdict(judge, task, f"{daemon} usleep(10000); {HONEST}")


def test_memory_hog_is_out(judge: Judge, task: Task) -> None:
    body = "for (;;) { char* p = (char*)malloc(1 << 26); if (!p) abort(); memset(p, 1, 1 << 26); }"
    assert isinstance(verdict(judge, task, body), LaunchFailed | TimedOut)


def test_disk_filler_fills_its_own_folder_only(judge: Judge, task: Task) -> None:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    fill = """
    static bool filled = false;
    if (!filled) {
        filled = true;
        signal(SIGXFSZ, SIG_IGN);
        static char block[1 << 20];
        for (const char* folder : {"/tmp", "/dev/shm", "."}) {
            for (int n = 0; n < 24; ++n) {
                int file = open((std::string(folder) + "/fill" + std::to_string(n)).c_str(), O_CREAT | O_WRONLY, 0600);
                for (int i = 0; i < 128 && write(file, block, sizeof block) > 0; ++i) {}
                close(file);
            }
        }
    }
    """
    verdict(judge, task, fill + HONEST)
    assert shutil.disk_usage(tempfile.gettempdir()).free > free - (1 << 30)


def test_file_named_to_the_assembler_is_not_read(judge: Judge, task: Task) -> None:
    found = verdict(judge, task, HONEST, 'asm(".incbin \\"/etc/hostname\\"");')
    assert isinstance(found, BuildFailed)


def test_network_call_reaches_nobody(judge: Judge, task: Task) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        call = f"""
        int s = socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in to{{}}; to.sin_family = AF_INET; to.sin_port = htons({server.getsockname()[1]});
        inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
        if (connect(s, (sockaddr*)&to, sizeof to) == 0) write(s, x, 4);
        close(s);
        """
        assert isinstance(verdict(judge, task, call + HONEST), Passed)
        with pytest.raises(TimeoutError):
            server.accept()


SNOOP = r"""
static bool contains(const std::string& path, const char* word) {
    std::string text; char part[4096];
    int file = open(path.c_str(), O_RDONLY);
    if (file < 0) return false;
    for (ssize_t n; (n = read(file, part, sizeof part)) > 0;) text.append(part, n);
    close(file);
    return text.find(word) != std::string::npos;
}
static bool snooped() {
    DIR* proc = opendir("/proc");
    while (dirent* entry = readdir(proc))
        for (const char* file : {"/environ", "/cmdline"})
            if (contains(std::string("/proc/") + entry->d_name + file, "sk-not-for-you")) return true;
    closedir(proc);
    for (const char* path : {SECRET, REFERENCE, JUDGE, ARCHIVE}) if (open(path, O_RDONLY) >= 0) return true;
    return getenv("OPENAI_API_KEY") || access("/root/.ssh", R_OK) == 0;
}
"""


def test_snooper_finds_no_key_no_task_and_no_file_of_the_user(
    judge: Judge, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if judge.launcher.name == "local":
        pytest.skip("no fence on this machine")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    secret = tmp_path / "secret"
    secret.write_text("sk-not-for-you")
    secret.chmod(0o644)
    places = {
        "SECRET": secret,
        "REFERENCE": task.folder / "reference.py",
        "JUDGE": ROOT / "sandbox" / "judge.py",
        "ARCHIVE": ROOT / "seeds" / "vector_add" / "reference.py",
    }
    assert all(place.exists() for place in places.values())
    defined = "\n".join(f'#define {name} "{place}"' for name, place in places.items())
    assert isinstance(verdict(judge, task, f"if (snooped()) abort(); {HONEST}", f"{defined}\n{SNOOP}"), Passed)


@pytest.mark.parametrize("victim", ["getppid()", "1", "-1", "0", pytest.param(str(os.getpid()), id="ours")])
def test_signals_reach_no_process_of_ours(judge: Judge, task: Task, victim: str) -> None:
    verdict(judge, task, f"kill({victim}, SIGTERM); kill({victim}, SIGKILL); {HONEST}")


def test_nothing_of_the_system_can_be_written(judge: Judge, task: Task) -> None:
    if judge.launcher.name == "local":
        pytest.skip("no fence on this machine")
    places = ("/usr/x", "/bin/x", "/etc/x", "/x", "/warpsmith/x", "/warpsmith/sandbox/worker/x", "/proc/sys/kernel/x")
    opened = " || ".join(f'open("{place}", O_CREAT | O_WRONLY, 0666) >= 0' for place in places)
    opened += ' || open("/proc/sys/kernel/core_pattern", O_WRONLY) >= 0 || setuid(0) == 0'
    assert isinstance(verdict(judge, task, f"if ({opened}) abort(); {HONEST}"), Passed)


def test_frozen_worker_that_has_itself_woken_is_seen_to_work(launcher: Launcher) -> None:
    """SIGCONT from a timer ends the stop; what it does then costs CPU time, to the nanosecond."""
    with launcher.worker(launch.Order(detect("cpu"), 4 << 30)) as worker:
        worker.peer.freeze()
        before = worker.peer.cpu_seconds()
        time.sleep(0.05)
        assert worker.peer.cpu_seconds() == before
        os.kill(worker.peer.processes()[-1], signal.SIGCONT)
        time.sleep(0.05)
        assert worker.peer.cpu_seconds() > before
        worker.peer.thaw()


# ---------------------------------------------------------------- what happens to a candidate


def test_killed_worker_is_not_the_end(judge: Judge, task: Task) -> None:
    seen: list[int] = []

    def kill() -> None:
        wait_for(lambda: bool(seen.extend(sleepers()) or seen), lambda: "no worker came up")
        os.kill(seen[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert isinstance(verdict(judge, task, f'prctl(PR_SET_NAME, "sleeper"); usleep(1500000); {HONEST}'), LaunchFailed)
    killer.join()


def sleepers() -> list[int]:
    found = [(int(path.parent.name), _text(path)) for path in Path("/proc").glob("[0-9]*/comm")]
    return [pid for pid, name in found if name.strip() == "sleeper"]


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


@pytest.mark.docker
def test_container_killed_by_somebody_is_no_fault_of_the_candidate(judge: Judge, task: Task) -> None:
    if judge.launcher.name != "docker":
        pytest.skip("local workers have no container")

    def kill() -> None:
        wait_for(lambda: bool(sleepers()), lambda: "no worker came up")
        group = _text(Path(f"/proc/{sleepers()[0]}/cgroup"))
        container = next(name for name in re.findall(r"[0-9a-f]{64}", group))
        subprocess.run(["docker", "kill", container], check=True, capture_output=True)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerLost, match="somebody stopped the container"):
        judge.judge(task, candidate(f'prctl(PR_SET_NAME, "sleeper"); usleep(1500000); {HONEST}'))
    killer.join()


# ---------------------------------------------------------------- what happens to the engine, and to us


class OwnEngine:
    """A Docker engine of this test's own, beside the machine's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, f"unix://{folder}/socket"

    def start(self) -> None:
        places = [f"--{name}={self.folder / name}" for name in ("data-root", "exec-root", "pidfile")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["dockerd", "-H", self.address, "--iptables=false", "--bridge=none", *places], stdout=log, stderr=log
            )
        wait_for(self.answers, lambda: (self.folder / "log").read_text()[-2000:], timeout_s=30)

    def answers(self) -> bool:
        return subprocess.run(["docker", "-H", self.address, "version"], capture_output=True).returncode == 0

    def containers(self) -> list[str]:
        listed = subprocess.run(["docker", "-H", self.address, "ps", "-aq"], capture_output=True, text=True, check=True)
        return listed.stdout.split()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def own_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnEngine]:
    if os.getuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("starting an engine takes root and dockerd")
    with tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True) as folder:
        engine = OwnEngine(Path(folder))
        engine.start()
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        yield engine
        engine.stop()


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # docker-py leaves failed sockets open.
def test_engine_stopped_midway_stops_the_run_and_blames_nobody(
    own_engine: OwnEngine, task: Task, tmp_path: Path
) -> None:
    def judged(source: Candidate) -> Verdict:
        with (
            contextlib.closing(launch.choose("docker")[0]) as launcher,
            Toolchain(tmp_path / "cache", launcher=launcher) as toolchain,
            Judge(detect("cpu"), toolchain, launcher, call_timeout_s=20.0) as judge,
        ):
            return judge.judge(task, source).verdict

    def stop() -> None:
        wait_for(lambda: bool(sleepers()), lambda: "no worker came up", timeout_s=60)
        own_engine.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Infrastructure):
        judged(candidate(f'prctl(PR_SET_NAME, "sleeper"); sleep(15); {HONEST}'))
    stopper.join()
    assert sleepers() == []
    own_engine.start()
    assert isinstance(judged(candidate(HONEST)), Passed)
    assert own_engine.containers() == []


HOST = """\
import sys, time
from sandbox import launch
from sandbox.devices import detect
launcher, _ = launch.choose(sys.argv[1])
workers = [launcher.worker(launch.Order(detect("cpu"), 1 << 30)).__enter__() for _ in range(2)]
workers[0].peer.freeze()
launcher.compiler("native", 60)
print(*[pid for worker in workers for pid in worker.peer.processes()], flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("sandbox", sandboxes)
def test_nothing_outlives_a_host_program_that_is_killed(sandbox: str) -> None:
    """A frozen worker among it, which cannot notice by itself."""
    host = subprocess.Popen([sys.executable, "-c", HOST, sandbox], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert host.stdout
    pids = [int(pid) for pid in host.stdout.readline().split()]
    assert len(pids) >= 4
    theirs = list(Path(tempfile.gettempdir()).glob(f"warpsmith-*.{host.pid}-*"))
    assert theirs
    host.kill()
    host.wait()
    host.stdout.close()
    wait_for(lambda: not any(map(psutil.pid_exists, pids)), lambda: f"{pids} live on")
    launch.choose(sandbox)[0].close()
    assert not any(path.exists() for path in theirs)
    if sandbox == "docker":
        label = f"label=warpsmith.owner={theirs[0].suffix[1:]}"
        listed = subprocess.run(["docker", "ps", "-aq", "--filter", label], capture_output=True, text=True, check=True)
        assert listed.stdout == ""
