"""The most similar task comes first, with its fastest kernels; other targets never."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import tasks
from agent.engineer.retrieval import PER_TASK, on_record, related, shelves, similarities
from archive import Archive
from sandbox import devices

PARTS = """
[[parts]]
task = "toy"
tensors = { out = "between" }

[[parts]]
task = "toy"
tensors = { a = "between", out = "sum" }
"""
NAMES = tasks.available()
HOPPER = devices.cross("sm_90")


@pytest.fixture(scope="module")
def seeds():
    return {name: tasks.load(name, "cuda") for name in NAMES}


@pytest.mark.parametrize(("task", "wanted"), [("attention", "attention_layernorm"), ("vector_add", "layernorm")])
def test_most_similar_built_in_task(seeds, task, wanted) -> None:
    others = [each for name, each in seeds.items() if name != task]
    found = similarities(seeds[task], others, HOPPER)
    assert others[found.index(max(found))].name == wanted


@given(picked=st.permutations(NAMES))
def test_similarity_is_from_zero_to_one_and_one_for_itself(seeds, picked) -> None:
    first, *others = (seeds[name] for name in picked)
    found = similarities(first, [first, *others], HOPPER)
    assert found[0] == pytest.approx(1.0)
    assert all(0 <= value <= 1 for value in found)


def test_fastest_kernels_of_the_most_similar_task_come_first(kernel, judgement, make_task, gpu) -> None:
    task = make_task(summary="row softmax", flops="4*N")
    near, far = make_task("near", summary="softmax of a row", flops="4*N"), make_task("far", flops="4000*N")
    bodies = ("int a;", "float4 v;", 'asm("cp.async");')
    one = [(c, judgement(c, score)) for c, score in zip(map(kernel, bodies), (0.1, 0.3, 0.2), strict=True)]
    other = [(kernel("int other;"), judgement(kernel("int other;"), 2.0))]
    found = related(task, [(far, other), (near, one)], gpu, n=3)
    assert [entry.candidate for entry in found] == [one[1][0], one[2][0], other[0][0]]
    assert [entry.task.name for entry in found] == ["near", "near", "far"]
    assert found[0].similarity == found[1].similarity > found[2].similarity
    assert PER_TASK == 2
    assert related(task, [(far, other), (near, one)], gpu, n=1) == found[:1]


def test_parts_of_the_task_come_first_and_each_with_its_fastest(kernel, judgement, make_task, gpu) -> None:
    names = ("near", "one", "two")
    task, near = make_task(summary="row softmax"), make_task("near", summary="softmax of a row", flops="4*N")
    one, two = (make_task(name, summary=name, flops="4000*N", axes=("K",)) for name in names[1:])
    made = [kernel(body, task=name) for name in names for body in (f"int {name};", f"float4 {name};")]
    scored = [(candidate, judgement(candidate, 1.0 - at / 10)) for at, candidate in enumerate(made)]
    shelf = {name: [(c, j) for c, j in scored if c.task == name] for name in names}
    found = related(task, [(each, shelf[each.name]) for each in (near, one, two)], gpu, n=9, own=("one", "two"))
    assert [entry.task.name for entry in found] == ["one", "two", "one", "two", "near", "near"]
    assert [entry.candidate for entry in found[:2]] == [made[2], made[4]]
    assert {entry.similarity for entry in found[:4]} == {1.0}


def test_parts_are_looked_for_beside_the_task(toy_folder: Path, kernel, judgement, tmp_path) -> None:
    whole = toy_folder.parent / "whole"
    shutil.copytree(toy_folder, whole)
    text = (whole / "task.toml").read_text().replace('"toy"', '"whole"').replace('"out"', '"sum"')
    (whole / "task.toml").write_text(text)
    (whole / "parts.toml").write_text(PARTS)
    task, cpu = tasks.load(str(whole), "cpu"), devices.cpu()
    version = tasks.load(str(toy_folder), "cpu").version
    with Archive.open(tmp_path / "a.db") as archive:
        made = tasks.seeds(tasks.load(str(toy_folder), "cpu"))[0]
        archive.add(made)
        archive.record(judgement(made, 0.1, device=cpu.name, task_version=version))
        found = on_record(task, archive, cpu)
    assert [(entry.task.version, entry.candidate, entry.similarity) for entry in found] == [(version, made, 1.0)]


def test_own_task_other_targets_and_failures_are_passed_over(kernel, judgement, make_task, gpu) -> None:
    candidate = kernel()
    shelves = [
        (make_task(), [(candidate, judgement(candidate, 1.0))]),
        (make_task("cpu", target="cpu"), [(candidate, judgement(candidate, 1.0))]),
        (make_task("failed"), [(candidate, judgement(candidate, None))]),
        (make_task("elsewhere"), [(candidate, judgement(candidate, 1.0, target="cpu"))]),
        (make_task("empty"), []),
    ]
    assert related(make_task(), shelves, gpu, n=9) == []


def test_modules_and_extensions_are_passed_over(kernel, judgement, make_task, gpu) -> None:
    module = kernel(form="module")
    assert related(make_task(), [(make_task("other"), [(module, judgement(module, 1.0))])], gpu, n=1) == []


def test_nothing_known_means_nothing_related(make_task, gpu) -> None:
    assert related(make_task(), [], gpu, n=3) == []


def test_what_an_older_judge_said_counts_until_a_newer_one_has_spoken(kernel, judgement, tmp_path) -> None:
    version = tasks.load("layernorm", "cuda").version
    with Archive.open(tmp_path / "a.db") as archive:
        for older in (1, 2):
            candidate = kernel(f"int by_{older};", task="layernorm")
            archive.add(candidate)
            given = {"device": HOPPER.name, "task_version": version, "judge_version": older}
            archive.record(judgement(candidate, 0.1, **given))
        [(_, judged)] = shelves(archive, HOPPER, {})
    assert [c.source for c, _ in judged] == [kernel("int by_2;").source]


def test_shelves_hold_what_was_judged_of_the_present_version_on_the_device(kernel, judgement, tmp_path) -> None:
    version = tasks.load("layernorm", "cuda").version
    with Archive.open(tmp_path / "a.db") as archive:
        for body, given in [
            ("int here;", {"task_version": version}),
            ("int old;", {"task_version": "before"}),
            ("int elsewhere;", {"task_version": version, "device": "another"}),
            ("int judged_otherwise;", {"task_version": version, "judge_version": 1}),
            ("int unknown;", {"task": "no such task"}),
        ]:
            candidate = kernel(body, task="layernorm")
            archive.add(candidate)
            archive.record(judgement(candidate, 0.1, **{"device": HOPPER.name, **given}))
        found = shelves(archive, HOPPER, {})
    assert [(task.name, [c.source for c, _ in judged]) for task, judged in found] == [
        ("layernorm", [kernel("int here;").source])
    ]
