"""Containers with the real engine: what they may do, how they are held, and that all of them go."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandbox import gpu_route, image, launch, owner
from sandbox.container import HeldByEngine
from sandbox.contract import Device
from sandbox.descendants import Family
from sandbox.devices import cross, detect
from sandbox.docker import DockerLauncher, DockerWorker, sweep
from sandbox.engine import Container, Engine
from sandbox.errors import BadInput, EngineUnreachable, WorkerLost
from sandbox.launch import Order
from sandbox.toolchain import Toolchain

ROOT = Path(__file__).parents[2]
ORDER = Order(detect("cpu"), 1 << 30)
docker = pytest.mark.docker


@pytest.fixture(scope="module")
def launcher() -> Iterator[DockerLauncher]:
    chosen, _ = launch.choose("docker")
    assert isinstance(chosen, DockerLauncher)
    with contextlib.closing(chosen):
        yield chosen


@pytest.fixture(scope="module")
def worker(launcher: DockerLauncher) -> Iterator[DockerWorker]:
    with launcher.worker(ORDER) as worker:
        yield worker


@pytest.fixture
def engine() -> Iterator[Engine]:
    with contextlib.closing(Engine()) as engine:
        yield engine


def inspected(worker: DockerWorker) -> dict[str, Any]:
    shown = subprocess.run(["docker", "inspect", container_of(worker)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(shown.stdout)[0]
    return found


def container_of(worker: DockerWorker) -> str:
    return str(worker.peer.body.container)  # type: ignore[attr-defined]


def wait_for(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


# ---------------------------------------------------------------- what a container may do


@docker
def test_container_is_shut_off(worker: DockerWorker) -> None:
    found = inspected(worker)
    host = found["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert 0 < host["PidsLimit"] <= 1024
    assert host["Memory"] == host["MemorySwap"] == ORDER.memory_bytes
    assert host["CpusetCpus"]
    assert "size=" in host["Tmpfs"]["/tmp"]
    assert host["AutoRemove"] is True
    assert found["Config"]["User"].split(":")[0] not in ("", "0", "root")


@docker
def test_processes_have_no_rights_and_no_network(worker: DockerWorker) -> None:
    for pid in worker.peer.processes():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert "0" not in status["Uid"].split()
        interfaces = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


@docker
def test_nothing_of_ours_but_the_worker_is_mounted(worker: DockerWorker) -> None:
    found = inspected(worker)
    writable = [mount["Source"] for mount in found["Mounts"] if mount["RW"]]
    assert writable == []
    own = [Path(mount["Source"]) for mount in found["Mounts"] if Path(mount["Source"]).is_relative_to(ROOT)]
    assert sorted(own) == [ROOT / "sandbox" / "compiler.py", ROOT / "sandbox" / "worker"]
    hidden = [Path(place) for place in found["HostConfig"]["Tmpfs"]]
    for mount in found["Mounts"]:
        if ROOT.is_relative_to(mount["Source"]):
            assert Path(mount["Destination"]) / ROOT.relative_to(mount["Source"]) in hidden


@docker
def test_environment_holds_no_key(launcher: DockerLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with launcher.worker(ORDER) as worker:
        for pid in worker.peer.processes():
            assert b"sk-test" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "sk-test" not in json.dumps(inspected(worker))


# ---------------------------------------------------------------- starting, holding, ending


@docker
def test_fresh_container_is_ready_within_seconds_and_gone_after(launcher: DockerLauncher, engine: Engine) -> None:
    started = time.monotonic()
    with launcher.worker(ORDER) as worker:
        assert time.monotonic() - started < 5
        container, pids = container_of(worker), worker.peer.processes()
        assert engine.runs(container)
    assert not Family(pids[0]).members()
    wait_for(lambda: container not in [found["Id"] for found in engine.labelled("warpsmith.owner")])


@docker
def test_frozen_container_uses_no_time(worker: DockerWorker) -> None:
    worker.peer.freeze()
    before = worker.peer.cpu_seconds()
    time.sleep(0.1)
    assert worker.peer.cpu_seconds() == before
    worker.peer.thaw()
    assert worker.peer.threads() >= 2


@docker
def test_container_can_be_held_through_the_engine_where_signals_are_not_permitted(
    launcher: DockerLauncher, engine: Engine
) -> None:
    with launcher.worker(ORDER) as worker:
        pids = worker.peer.processes()
        held = HeldByEngine(worker.box, container_of(worker))
        assert held.members() == pids
        held.stop()
        before = held.cpu_seconds()
        assert before > 0
        assert held.cpu_seconds() == before
        held.go_on()
        assert held.threads() >= len(pids)
        held.kill()
        assert not Family(pids[0]).members()


@docker
def test_tool_comes_before_the_worker_and_reports_into_the_shared_folder(
    launcher: DockerLauncher, tmp_path: Path
) -> None:
    order = Order(
        ORDER.device, ORDER.memory_bytes, tool=("sh", "-c", 'id -u > /out/report; exec "$@"', "sh"), shared=tmp_path
    )
    with launcher.worker(order) as worker:
        assert [mount["Destination"] for mount in inspected(worker)["Mounts"] if mount["RW"]] == ["/out"]
    assert (tmp_path / "report").read_text().strip() == str(os.getuid() or 65534)


@docker
def test_worker_that_cannot_start_says_why(launcher: DockerLauncher, engine: Engine) -> None:
    order = Order(ORDER.device, ORDER.memory_bytes, tool=("sh", "-c", "echo no such tool >&2; exit 3"))
    with pytest.raises(WorkerLost, match="ended before it had connected: no such tool"), launcher.worker(order):
        pass


@docker
def test_worker_that_nobody_enters_is_ended_too(launcher: DockerLauncher, engine: Engine) -> None:
    before = {found["Id"] for found in engine.labelled("warpsmith.owner")}
    launcher.worker(ORDER).__exit__(None, None, None)
    wait_for(lambda: {found["Id"] for found in engine.labelled(f"warpsmith.launcher={launcher.folder.name}")} <= before)


# ---------------------------------------------------------------- compilers


@docker
def test_compilers_in_a_container_build_as_those_outside_do(launcher: DockerLauncher, tmp_path: Path) -> None:
    source = 'extern "C" int three() { return 3; }'
    with Toolchain(tmp_path / "in", launcher=launcher) as inside, Toolchain(tmp_path / "out") as outside:
        built = [toolchain.build(source, "cpu", {}, "x86_64") for toolchain in (inside, outside)]
        if launcher.kind == "host":
            assert built[0].sha256 == built[1].sha256
            assert inside.versions() == outside.versions()


@docker
def test_compiler_finds_nothing_to_read(launcher: DockerLauncher, tmp_path: Path) -> None:
    secret = tmp_path / "secret.h"
    secret.write_text("#error read the secret\n")
    for file in (secret, ROOT / "seeds" / "vector_add" / "reference.py", ROOT / "sandbox" / "judge.py"):
        process = launcher.compiler("native", 30)
        request = {
            "compile": ["g++", "-include", str(file), "-S", "-o", "kernel.s", "kernel.cpp"],
            "link": [],
            "cpu_s": 9,
        }
        answer, _ = process.ask(request, b"", 30)
        process.kill()
        assert not answer["succeeded"]
        assert "No such file" in answer["log"] or "Permission denied" in answer["log"]


@docker
def test_lost_container_of_the_compilers_is_started_again(launcher: DockerLauncher, tmp_path: Path) -> None:
    with Toolchain(tmp_path, launcher=launcher) as toolchain:
        toolchain.build('extern "C" void one() {}', "cpu", {}, "x86_64")
        assert launcher.compilers.box
        Family(launcher.compilers.box.peer().processes()[0]).kill()
        assert not toolchain.build('extern "C" void two() {}', "cpu", {}, "x86_64").cached


@docker
def test_compilers_of_several_threads_share_a_container(launcher: DockerLauncher, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with Toolchain(tmp_path, launcher=launcher) as toolchain, ThreadPoolExecutor(4) as pool:
        sources = [f'extern "C" int f() {{ return {n}; }}' for n in range(8)]
        built = list(pool.map(lambda source: toolchain.build(source, "cpu", {}, "x86_64").sha256, sources))
    assert len(set(built)) == 8


# ---------------------------------------------------------------- what was left behind


@docker
def test_sweep_removes_what_belongs_to_nobody_and_nothing_else(
    launcher: DockerLauncher, worker: DockerWorker, engine: Engine, tmp_path: Path
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    own = owner.this_program().split("-")
    gone = "-".join([str(dead.pid), *own[1:]])
    left = engine.create(
        Container(
            image=image.name(launcher.kind),
            command=["/bin/true"],
            labels={"warpsmith.owner": gone},
            environment={},
            user="65534",
            memory_bytes=64 << 20,
            processes=8,
            cores="0",
            scratch_bytes=1 << 20,
            binds={},
        )
    )
    removed = sweep(engine)
    assert len(removed) >= 1
    ids = [found["Id"] for found in engine.labelled("warpsmith.owner")]
    assert left not in ids
    assert container_of(worker) in ids
    assert worker.peer.processes()


def test_owner_is_known_by_more_than_its_number() -> None:
    pid, started, boot, namespace = owner.this_program().split("-")
    assert not owner.gone(owner.this_program())
    assert owner.gone(f"{pid}-{int(started) + 1}-{boot}-{namespace}")
    assert owner.gone(f"{pid}-{started}-00000000-{namespace}")
    assert not owner.gone(f"{pid}-{int(started) + 1}-{boot}-1"), "another PID namespace cannot be looked into"
    assert not owner.gone("something else")


# ---------------------------------------------------------------- images


def test_host_image_is_an_empty_tree_with_places_to_mount() -> None:
    with tarfile.open(fileobj=io.BytesIO(image.tree())) as tar:
        modes = {entry.name: entry.mode for entry in tar.getmembers()}
        content = sum(entry.size for entry in tar.getmembers())
    assert modes["tmp"] == 0o1777
    assert {"usr", "lib", "lib64", "bin", "opt", "warpsmith/sandbox/__init__.py"} <= modes.keys()
    assert content < 1000


def test_cuda_version_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="is no version"):
        list(image.build(None, "latest; rm", ""))  # type: ignore[arg-type]


@docker
def test_commands_tell_what_is_there_and_clean_up() -> None:
    def warpsmith(*arguments: str) -> Any:
        command = [sys.executable, "-m", "agent", "sandbox", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout) if "--json" in arguments else done.stdout.strip()

    assert warpsmith("build", "--from-host") == "warpsmith-sandbox:host"
    status = warpsmith("status", "--json")
    assert status["sandbox"] == "docker"
    assert status["engine"]
    assert status["image"].startswith("warpsmith-sandbox:")
    assert isinstance(warpsmith("clean", "--json"), list)


# ---------------------------------------------------------------- GPUs


def test_route_to_the_gpu_is_found_or_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes = "nodes" if gpu_route.nodes() else "none"
    (tmp_path / "nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    assert gpu_route.choose({"Runtimes": {"runc": {}, "nvidia": {}}}) == "runtime"
    assert gpu_route.choose({"Runtimes": {"runc": {}}, "CDISpecDirs": [str(tmp_path)]}) == "cdi"
    assert gpu_route.choose({"Runtimes": {"runc": {}}, "CDISpecDirs": None}) == nodes
    monkeypatch.setenv("WARPSMITH_DOCKER_GPU", "cdi")
    assert gpu_route.choose({}) == "cdi"
    monkeypatch.setenv("WARPSMITH_DOCKER_GPU", "magic")
    with pytest.raises(BadInput, match="'magic'; wanted one of runtime, cdi, nodes, none"):
        gpu_route.choose({})


@docker
def test_gpu_that_no_container_can_get_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPSMITH_DOCKER_GPU", "none")
    device: Device = cross("sm_86")
    with pytest.raises(EngineUnreachable, match="no way to a GPU"):
        launch.choose("docker", device)
    launcher, why = launch.choose("auto", device)
    launcher.close()
    assert "Docker cannot be used" in why


@docker
def test_close_leaves_no_container(engine: Engine) -> None:
    launcher, _ = launch.choose("docker")
    assert isinstance(launcher, DockerLauncher)
    workers = [launcher.worker(ORDER).__enter__() for _ in range(3)]
    pids = [pid for worker in workers for pid in worker.peer.processes()]
    for worker in workers:
        worker.__exit__(None, None, None)
    launcher.close()
    assert engine.labelled(f"warpsmith.launcher={launcher.folder.name}") == []
    assert not launcher.folder.exists()
    assert not any(psutil.pid_exists(pid) and Family(pid).members() for pid in pids)
