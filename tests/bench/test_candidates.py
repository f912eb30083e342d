"""What the benchmarks judge."""

import pytest

from agent import tasks
from bench.candidates import BROKEN, COUNT, paced, specimens
from bench.inline import inline_source
from bench.judge_throughput import spread
from sandbox import plan
from sandbox.contract import Device, Target
from sandbox.devices import cpu, cross

DEVICES: dict[Target, Device] = {"cuda": cross("sm_90a"), "cpu": cpu()}


@pytest.mark.parametrize("target", ["cuda", "cpu"])
@pytest.mark.parametrize("name", ["attention", "layernorm"])
def test_a_quarter_of_the_64_is_broken_and_none_is_like_another(name: str, target: Target) -> None:
    task = tasks.load(name, target)
    found = specimens(task, DEVICES[target], repeat=0)
    assert len(found) == COUNT
    assert sum(specimen.expected != "Passed" for specimen in found) == BROKEN
    again = specimens(task, DEVICES[target], repeat=1)
    assert len({specimen.candidate.source for specimen in found + again}) == 2 * COUNT


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_every_one_has_a_plan_that_the_usual_way_can_launch(target: Target) -> None:
    task = tasks.load("attention", target)
    for specimen in specimens(task, DEVICES[target], repeat=0):
        text = inline_source(task, specimen.candidate, task.workloads[0], DEVICES[target])
        assert ("<<<" in text) == (target == "cuda")
        assert specimen.candidate.source in text


def test_a_sample_has_right_and_broken_ones() -> None:
    found = specimens(tasks.load("layernorm", "cpu"), DEVICES["cpu"], repeat=0)
    assert [specimen.expected == "Passed" for specimen in spread(found, 4)] == [True, True, True, False]
    assert [specimen.expected for specimen in spread(found, 1)] == ["Passed"]


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_the_brake_is_one_number(target: Target) -> None:
    task = tasks.load("layernorm", target)
    fast, slow = paced(task, 0.0), paced(task, 0.03)
    assert plan.plan_of(fast, task) == plan.plan_of(slow, task)
    changed = set(fast.source.splitlines()) ^ set(slow.source.splitlines())
    assert changed == {"#define EXTRA 0", "#define EXTRA 300"}
