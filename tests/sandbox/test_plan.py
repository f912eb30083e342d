from pathlib import Path

import pytest

from sandbox.contract import Device, ScalarSpec, Target, Task, TensorSpec, Workload
from sandbox.errors import PlanError
from sandbox.plan import allowed, macros, parse, resolve, settle
from sandbox.signature import prototype

H100 = Device(name="H100", target="cuda", arch="sm_90a", sm_count=132, smem_optin=232448)

SOURCE = """\
// 2: an example. The word launch in prose is no plan line; neither is workspace.
// launch split: grid(B*H, cdiv(S, CHUNK)) block(THREADS) smem(2*TILE*D*itemsize) when(S > CHUNK)
// launch whole: grid(B*H) block(THREADS, 2) cluster(2, 1, 1) cooperative when(S <= CHUNK)
// workspace: B*H*cdiv(S, CHUNK)*(D + 2)*4
// zero: workspace
// static: D causal
// tensormap q_map: q view(B*H*S, D) box(TILE, D) swizzle(128B)
#ifndef TILE
#define TILE 64     // tune: 16 32 64 128
#endif
#define THREADS 128 // tune: 64 128
#define CHUNK 512   // tune: 256 512
// tune-if: TILE*THREADS <= 8192
extern "C" __global__ void split(int); extern "C" __global__ void whole(int);
"""


def make_task(target: Target = "cuda") -> Task:
    tensor = lambda name: TensorSpec(name=name, shape=("B", "H", "S", "D"))  # noqa: E731
    return Task(
        name="attention",
        version="v",
        summary="",
        target=target,
        axes=("B", "H", "S", "D"),
        outputs=(tensor("out"),),
        inputs=(tensor("q"), tensor("k"), TensorSpec(name="pos", shape=("B",), dtype="int32")),
        scalars=(ScalarSpec(name="scale", type="float"), ScalarSpec(name="causal", type="int")),
        workloads=tuple(
            Workload(axes={"B": 2, "H": 8, "S": s, "D": 64}, scalars={"scale": 0.1, "causal": 1}, dtype="float16")
            for s in (512, 1000)
        ),
        bytes_moved="1",
        flops="1",
        folder=Path(),
    )


def test_plan_resolves_to_integers_for_each_workload() -> None:
    task = make_task()
    plan = parse(SOURCE, task)
    small, large = (resolve(plan, task, w, settle(plan, {"TILE": 32}), H100) for w in task.workloads)
    assert [launch.kernel for launch in small.launches] == ["whole"]
    assert small.launches[0].cluster == (2, 1, 1)
    assert small.launches[0].cooperative
    assert large.launches[0].grid == (16, 2, 1)
    assert large.launches[0].smem_bytes == 2 * 32 * 64 * 2
    assert large.workspace_bytes == 16 * 2 * 66 * 4
    assert large.zero_workspace
    assert large.tensormaps[0].shape == (16000, 64)


def test_macros_hold_dtype_statics_and_tunables() -> None:
    task = make_task()
    plan = parse(SOURCE, task)
    assert macros(task, plan, task.workloads[0], settle(plan, {})) == {
        "scalar_t": "__half",
        "DTYPE_FLOAT16": "1",
        "DTYPE_BFLOAT16": "0",
        "DTYPE_FLOAT32": "0",
        "STATIC_D": "64",
        "STATIC_CAUSAL": "1",
        "TILE": "64",
        "THREADS": "128",
        "CHUNK": "512",
    }


def test_prototype_follows_the_contract() -> None:
    assert prototype(make_task(), "split", ("q_map",)) == (
        "void split(scalar_t* out, const scalar_t* q, const scalar_t* k, const int32_t* pos, "
        "int64_t B, int64_t H, int64_t S, int64_t D, float scale, int causal, void* workspace, "
        "const __grid_constant__ CUtensorMap q_map)"
    )


def test_constraints_and_choices_bind_tunables() -> None:
    task = make_task()
    plan = parse(SOURCE, task)
    assert allowed(plan, task, {"TILE": 64, "THREADS": 128}, H100)
    assert not allowed(plan, task, {"TILE": 128, "THREADS": 128}, H100)
    with pytest.raises(PlanError, match=r"got 48, wanted one of \(16, 32, 64, 128\)"):
        settle(plan, {"TILE": 48})
    with pytest.raises(PlanError, match="'WIDTH' is not declared"):
        settle(plan, {"WIDTH": 1})


@pytest.mark.parametrize(
    ("line", "replacement", "number", "wanted"),
    [
        (2, "// launch split: block(32)", 2, "no grid"),
        (2, "// launch split: grid(B) block(32) shared(4)", 2, "got 'shared'"),
        (2, "// launch split: grid(B) block(32) smem", 2, "smem takes a value"),
        (2, "// launch split: grid(B) block(32) grid(1)", 2, "grid stands twice"),
        (2, "// launch split: grid(B, 1, 1, 1) block(32)", 2, "4 dimensions"),
        (2, "// launch split: grid(Q) block(32)", 2, "unknown name 'Q'"),
        (2, "// launch split: grid(scale) block(32)", 2, "unknown name 'scale'"),
        (2, "// launch split: grid(cdiv(S, 2) block(32)", 2, "closes"),
        (2, "// launch missing: grid(B) block(32)", 2, "no kernel of that name"),
        (4, "// workspace: B*", 4, "got the end"),
        (5, "// zero: out", 5, "only a declared workspace"),
        (6, "// static: D scale", 6, "'scale' is no axis or int scalar"),
        (7, "// tensormap q_map: z box(1)", 7, "tensormap of 'z'"),
        (7, "// tensormap q_map: q box(1, 2)", 7, "4 dimensions"),
        (7, "// tensormap q_map: q view(B, D) box(1, 2) swizzle(5B)", 7, "wanted 32B, 64B or 128B"),
        (9, "#define TILE 48 // tune: 16 32", 9, "none of its choices"),
        (9, "#define TILE ² // tune: ²", 9, "wanted integers >= 0"),
        (9, "#define TILE x // tune: 16 32", 9, "wanted integers"),
        (9, "#define D 64 // tune: 64", 9, "already a name of the task"),
        (11, "#define TILE 16 // tune: 16", 11, "already a tunable"),
        (13, "// tune-if: TILE <", 13, "got the end"),
    ],
)
def test_every_error_points_at_its_line(line: int, replacement: str, number: int, wanted: str) -> None:
    lines = SOURCE.splitlines()
    lines[line - 1] = replacement
    with pytest.raises(PlanError) as caught:
        parse("\n".join(lines), make_task())
    assert caught.value.line == number
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("replacement", "wanted"),
    [
        ("// launch split: grid(B) block(2048)", "block.x = 2048 = 2048, wanted 1 to 1024"),
        ("// launch split: grid(B) block(64, 32)", "more than 1024 threads"),
        ("// launch split: grid(B - 2) block(32)", "grid.x = B - 2 = 0"),
        ("// launch split: grid(B) block(32) smem(300000)", "beyond the device's 232448 bytes"),
        ("// launch split: grid(1, S*D*B) block(32)", "wanted 1 to 65535"),
    ],
)
def test_what_the_device_cannot_launch_is_an_error(replacement: str, wanted: str) -> None:
    lines = SOURCE.splitlines()
    lines[1] = replacement
    task = make_task()
    plan = parse("\n".join(lines), task)
    with pytest.raises(PlanError, match="line 2") as caught:
        resolve(plan, task, task.workloads[1], settle(plan, {}), H100)
    assert wanted in str(caught.value)


def test_targets_are_not_mixed_up() -> None:
    with pytest.raises(PlanError, match="at least one"):
        parse('extern "C" __global__ void f();', make_task())
    with pytest.raises(PlanError, match="has no launches"):
        parse("// launch f: grid(1) block(1)\nvoid attention();", make_task("cpu"))
    with pytest.raises(PlanError, match="no function attention"):
        parse("void other();", make_task("cpu"))
