"""What is written into an extension's tree: names, schemas, regions, provenance, and what is refused.

Nothing here builds a tree.
"""

import json
from pathlib import Path

import pytest

from agent.compose import Part, Winner, compose
from agent.export.coverage import ops
from agent.export.cpu import directives, renames
from agent.export.rendering import region
from agent.export.signature import axis_sources, check, schema, schemas
from sandbox.contract import Device, Task, Workload
from sandbox.errors import BadInput
from sandbox.toolchain import Toolchain
from tests.agent.export.conftest import (
    A10,
    AFFINE,
    CPU,
    H100,
    SCALED,
    TENSOR_MAP,
    TWO_PASS,
    candidate,
    judgement_of,
    marked,
)


def winner(task: Task, source: str, device: Device = CPU, **tunables: int) -> Part:
    name = task.workloads[0].name
    return Part(task=task, device=device, winners={name: Winner(candidate=candidate(task, source, **tunables))})


def test_sources_and_provenance_say_where_everything_comes_from(
    affine: Task, toolchain: Toolchain, tmp_path: Path
) -> None:
    composed = compose([winner(affine, marked(0))], toolchain, tmp_path)
    folder = composed.root / composed.package
    known = json.loads((folder / "provenance.json").read_text())
    assert (known["package"], known["namespace"]) == (composed.package, composed.package)
    task = known["tasks"]["affine"]
    assert task["task_version"] == affine.version
    first = task["candidates"][task["workloads"][0]["candidate"]]
    assert (folder / first["source"]).read_text() == marked(0)
    assert first["tunables"] == {"CHUNK": 1}
    assert first["specialisations"][0]["statics"] == {"D": 8, "flip": 0}
    assert first["specialisations"][0]["bounds"] == {"N": [3, 4096]}
    assert not first["specialisations"][0]["artifacts"]["x86_64"]["judged"]
    assert first["specialisations"][0]["levels_not_judged"] == ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
    assert "/work" not in (folder / "provenance.json").read_text()


def test_provenance_has_the_lineage_and_the_whole_verdict(rowsum: Task, toolchain: Toolchain, tmp_path: Path) -> None:
    ancestor = candidate(rowsum, TENSOR_MAP)
    won = candidate(rowsum, TWO_PASS).model_copy(update={"parents": (ancestor.id,), "operator": "propose"})
    judgement = judgement_of(rowsum, won)
    winners = {rowsum.workloads[0].name: Winner(candidate=won, judgement=judgement, lineage=(ancestor,))}
    composed = compose([Part(task=rowsum, device=H100, winners=winners)], toolchain, tmp_path)
    known = json.loads((composed.root / composed.package / "provenance.json").read_text())
    origin = known["tasks"]["rowsum"]["candidates"][won.id]
    assert (origin["operator"], origin["parents"]) == ("propose", [ancestor.id])
    assert origin["lineage"] == {ancestor.id: {"operator": "seed", "proposer": "seed", "parents": []}}
    verdict = origin["judgements"][H100.name]
    assert verdict["speedup"]["eager"] == {"ratio": 2.5, "low": 2.4, "high": 2.6}
    assert verdict["timings"][rowsum.workloads[0].name]["eager"] == [0.05, 0.05, 0.05]


def test_a_tree_is_replaced_whole_and_its_name_follows_its_content(
    affine: Task, toolchain: Toolchain, tmp_path: Path
) -> None:
    first = compose([winner(affine, marked(0))], toolchain, tmp_path)
    (first.root / "stale").touch()
    assert compose([winner(affine, marked(0))], toolchain, tmp_path) == first
    assert not (first.root / "stale").exists()
    assert compose([winner(affine, marked(0), CHUNK=2)], toolchain, tmp_path).package != first.package
    assert sorted(path.name[:17] for path in tmp_path.iterdir()) == ["warpsmith_affine_", "warpsmith_affine_"]


def test_a_package_keeps_its_name_and_its_namespace_follows_its_content(
    affine: Task, scaled: Task, toolchain: Toolchain, tmp_path: Path
) -> None:
    one = compose([winner(affine, marked(0))], toolchain, tmp_path, "mine")
    two = compose([winner(affine, marked(0)), winner(scaled, SCALED)], toolchain, tmp_path, "mine")
    assert (one.package, two.package, one.root) == ("mine", "mine", two.root)
    assert one.namespace != two.namespace
    assert two.namespace.startswith("mine_")
    assert two.served.keys() == {"affine", "scaled"}


def test_winners_that_do_not_belong_are_refused(affine: Task, toolchain: Toolchain, tmp_path: Path) -> None:
    good = candidate(affine, marked(0))
    name = affine.workloads[0].name
    for winners, message in (
        ({}, "no winners"),
        ({"N1": Winner(candidate=good)}, "no such workload"),
        ({name: Winner(candidate=good.model_copy(update={"task": "other"}))}, "is for other on cpu, wanted affine"),
        ({name: Winner(candidate=candidate(affine, AFFINE.replace("MARK", "nothing")))}, "does not compile"),
    ):
        with pytest.raises(BadInput, match=message):
            compose([Part(task=affine, device=CPU, winners=winners)], toolchain, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_go_together_are_refused(
    affine: Task, rowsum: Task, toolchain: Toolchain, tmp_path: Path
) -> None:
    part = winner(affine, marked(0))
    for parts, message in (
        ([], "nothing to compose: no tasks given"),
        ([part, winner(rowsum, TWO_PASS, H100)], "got affine for cpu and rowsum for cuda, wanted tasks of one target"),
        ([part, part], "task affine is given 2 times for a CPU"),
        (
            [
                part,
                winner(affine.model_copy(update={"version": "2"}), marked(0)).model_copy(update={"device": H100}),
            ],
            f"got versions {affine.version} and 2 of task affine, wanted one",
        ),
    ):
        with pytest.raises(BadInput, match=message):
            compose(parts, toolchain, tmp_path)


def test_an_axis_that_no_argument_shows_is_refused(affine: Task) -> None:
    blind = affine.model_copy(update={"axes": ("N", "D", "M")})
    with pytest.raises(BadInput, match="axis M cannot be read from the arguments"):
        axis_sources(blind)


def test_a_task_that_would_hide_a_module_of_the_package_is_refused(affine: Task) -> None:
    with pytest.raises(BadInput, match="the package has a name loading of its own"):
        check(affine.model_copy(update={"name": "loading"}))


def test_schema_marks_inouts_and_keeps_defaults_that_pytorch_allows(affine: Task, scaled: Task) -> None:
    wanted = "affine(Tensor(a!) state, Tensor x, Tensor bias, Tensor p, int flip, float scale=2.5) -> (Tensor, Tensor)"
    assert schemas(affine) == [wanted, wanted.replace("affine", "affine_reference")]
    swapped = affine.model_copy(update={"scalars": affine.scalars[::-1]})
    assert schema(swapped).endswith("Tensor p, float scale, int flip) -> (Tensor, Tensor)")
    assert schemas(scaled)[2].startswith("scaled_backward(Tensor[] grads, Tensor[] tensors, float factor, int negate, ")


def with_shape(part: Part, shape: Workload, source: str = marked(0)) -> Part:
    """The same with a further shape that the candidate of `source` won."""
    winners = {**part.winners, shape.name: Winner(candidate=candidate(part.task, source))}
    return part.model_copy(update={"winners": winners, "shapes": (shape,)})


def test_a_region_spans_the_workloads_of_its_dtype_and_the_shapes_that_it_won(
    affine: Task, scaled: Task, toolchain: Toolchain
) -> None:
    (op,) = ops([winner(affine, marked(0))], toolchain)
    assert region(op.variants[0].specialisations[0]) == "float32, D = 8, flip = 0, N 3 to 4096"
    longer = affine.workloads[0].model_copy(update={"axes": {"N": 9999, "D": 8}})
    (op,) = ops([with_shape(winner(affine, marked(0)), longer)], toolchain)
    assert op.variants[0].specialisations[0].bounds == {"N": (3, 9999)}
    assert [entry.workload for entry in op.entries] == [affine.workloads[0], longer]
    (op,) = ops([with_shape(winner(affine, marked(0)), longer, marked(1))], toolchain)
    assert [variant.specialisations[0].bounds for variant in op.variants] == [{"N": (3, 4096)}, {"N": (3, 9999)}]
    shorter = longer.model_copy(update={"axes": {"N": 1, "D": 8}})
    elsewhere = with_shape(winner(affine, marked(0)), shorter).model_copy(update={"device": H100})
    (op,) = ops([with_shape(winner(affine, marked(0)), longer), elsewhere], toolchain)
    assert op.variants[0].specialisations[0].bounds == {"N": (1, 9999)}, "proven on either device"
    wider = longer.model_copy(update={"axes": {"N": 7, "D": 24}})
    (op,) = ops([with_shape(winner(affine, marked(1)), wider, marked(1))], toolchain)
    assert {"D": 24, "flip": 0} in [spec.statics for spec in op.variants[0].specialisations]
    (op,) = ops([winner(scaled, SCALED)], toolchain)
    assert region(op.variants[0].specialisations[0]) == "float32, negate 0 or 1, N 3 to 64, D 5 to 16"


def test_a_level_that_a_source_does_not_compile_for_is_left_out(
    scaled: Task, toolchain: Toolchain, tmp_path: Path
) -> None:
    wide = SCALED.replace("// 1: one loop.", "// 1: AVX2.\n#include <immintrin.h>").replace(
        "for (", "static_cast<void>(_mm256_abs_epi8(__m256i{}));\n    for (", 1
    )
    composed = compose([winner(scaled, wide)], toolchain, tmp_path)
    known = json.loads((composed.root / composed.package / "provenance.json").read_text())
    (origin,) = known["tasks"]["scaled"]["candidates"].values()
    assert list(origin["specialisations"][0]["does_not_compile_for"]) == ["x86-64-v2"]
    recipe = json.loads((composed.root / "csrc" / "build.json").read_text())["wheel"]
    assert [len(recipe[name]["sources"]) for name in ("_x86_64_v2", "_x86_64_v3", "_x86_64_v4")] == [1, 2, 2]
    assert "nullptr," in (composed.root / "csrc" / "kernels_x86_64_v2.cpp").read_text()


def test_one_candidate_that_won_on_two_gpus_is_there_once_with_what_was_judged_on_either(
    rowsum: Task, toolchain: Toolchain
) -> None:
    shared, other = candidate(rowsum, TWO_PASS), candidate(rowsum, TENSOR_MAP)
    first, second = (w.name for w in rowsum.workloads)

    def part(device: Device) -> Part:
        won = Winner(candidate=shared, judgement=judgement_of(rowsum, shared, device))
        return Part(task=rowsum, device=device, winners={first: won})

    hopper = part(H100)
    hopper = hopper.model_copy(update={"winners": {**hopper.winners, second: Winner(candidate=other)}})
    (op,) = ops([part(A10), hopper], toolchain)
    assert [variant.candidate.id for variant in op.variants] == [shared.id, other.id]
    half = next(spec for spec in op.variants[0].specialisations if spec.dtype == "float16")
    assert {image.arch: image.judged for image in half.images} == {
        "sm_80": False, "sm_86": True, "sm_89": False, "sm_90a": True, "compute_80": False,
    }  # fmt: skip
    assert [(entry.arch, entry.candidate) for entry in op.entries] == [
        ("sm_86", shared.id), ("sm_90a", shared.id), ("sm_90a", other.id),
    ]  # fmt: skip


def test_directives_skip_comments_and_pragmas_of_code() -> None:
    source = AFFINE + '#pragma GCC diagnostic ignored "-Wall"\nconst char* s = "// #include <no>";\n'
    assert [line.split()[0] for line in directives(source)] == [
        "#include", "#ifdef", "#include", "#endif", "#ifndef", "#define", "#endif", "#define",
        "#ifdef", "#error", "#endif", "#define", "#pragma",
    ]  # fmt: skip
    assert directives("/*\n#include <a>\n*/ // #include <b>\n") == []


def test_everything_with_c_linkage_is_renamed() -> None:
    source = (
        'extern "C" inline int helper(int a) { return a; }\n// extern "C" void no();\nextern "C" void f(float* x) {}'
    )
    assert renames(source, "f", "k1") == {"f": "f_k1", "helper": "helper_k1"}
