"""The tuner: seeds first, then the promising ones, never the same text twice, always the same for the same history."""

from pathlib import Path

import pytest

from agent import tasks
from agent.proposers import choose
from agent.proposers.tuner import Tuner
from sandbox.contract import BuildFailed, Candidate, Device, Interval, Passed, Task, Verdict
from sandbox.errors import BadInput

CPU = Device(name="test cpu", target="cpu", arch="x86_64", threads=2)


@pytest.fixture
def toy(toy_folder: Path) -> Task:
    return tasks.load(str(toy_folder), "cpu")


def passed(latency_ms: float) -> Passed:
    ratio = 4.0 / latency_ms
    speedup = {"eager": Interval(ratio=ratio, low=ratio, high=ratio)}
    return Passed(checks=(), timings=(), speedup=speedup, latency_ms=latency_ms)


def latency(candidate: Candidate) -> Verdict:
    """A landscape: the third seed is ten times slower, BLOCK=128 UNROLL=2 is best, UNROLL=4 does not build."""
    if candidate.note.startswith("1_"):
        return passed(5.0)
    if candidate.tunables["UNROLL"] == 4:
        return BuildFailed(log="no")
    base = 10.0 if candidate.note.startswith("10_") else 1.0
    return passed(base * 128 / candidate.tunables["BLOCK"] / candidate.tunables["UNROLL"])


def search(tuner: Tuner, evals: int, n: int = 1) -> list[tuple[Candidate, Verdict]]:
    history: list[tuple[Candidate, Verdict]] = []
    while len(history) < evals and (batch := tuner.propose(history, n)):
        history += [(candidate, latency(candidate)) for candidate in batch]
    return history


def test_seeds_come_first_and_in_order(toy: Task) -> None:
    seeds = tasks.seeds(toy)
    history = search(Tuner(toy, seeds, CPU, 0), 3)
    assert [candidate for candidate, _ in history] == seeds
    assert Tuner(toy, seeds, CPU, 0).propose([], 2) == seeds[:2]


def test_nothing_is_proposed_twice_and_every_space_is_exhausted(toy: Task) -> None:
    history = search(Tuner(toy, tasks.seeds(toy), CPU, 0), 1000, n=4)
    ids = [candidate.id for candidate, _ in history]
    assert len(ids) == len(set(ids))
    # One plain seed, and of 12 combinations the one with 512 is forbidden, for both others.
    assert len(ids) == 1 + 2 * 11
    assert Tuner(toy, tasks.seeds(toy), CPU, 0).propose(history, 4) == []


def test_same_history_and_seed_give_the_same_proposal(toy: Task) -> None:
    seeds = tasks.seeds(toy)
    history = search(Tuner(toy, seeds, CPU, 7), 9)
    fresh = Tuner(toy, seeds, CPU, 7)
    replayed = [fresh.propose(history[:done], 1)[0] for done in range(9)]
    assert replayed == [candidate for candidate, _ in history]


def test_another_seed_searches_in_another_order(toy: Task) -> None:
    orders = {tuple(c.id for c, _ in search(Tuner(toy, tasks.seeds(toy), CPU, seed), 9)) for seed in range(4)}
    assert len(orders) > 1


def test_variant_is_a_child_of_its_seed(toy: Task) -> None:
    seeds = tasks.seeds(toy)
    variant = search(Tuner(toy, seeds, CPU, 0), 4)[3][0]
    parent = next(seed for seed in seeds if seed.source == variant.source)
    assert (variant.operator, variant.proposer, variant.parents) == ("tune", "tuner", (parent.id,))
    assert variant.note == f"{parent.note}: BLOCK={variant.tunables['BLOCK']} UNROLL={variant.tunables['UNROLL']}"


def test_constraints_hold_for_every_variant(toy: Task) -> None:
    history = search(Tuner(toy, tasks.seeds(toy), CPU, 0), 1000)
    assert all(c.tunables["BLOCK"] * c.tunables["UNROLL"] <= 256 for c, _ in history if c.tunables)


def test_budget_goes_to_the_promising_source(toy: Task) -> None:
    history = search(Tuner(toy, tasks.seeds(toy), CPU, 0), 12)
    tuned = [candidate.note.split("_")[0] for candidate, _ in history if candidate.operator == "tune"]
    assert tuned.count("2") > 3 * tuned.count("10")


def test_best_variant_is_found_before_half_of_the_space_is_spent(toy: Task) -> None:
    history = search(Tuner(toy, tasks.seeds(toy), CPU, 1), 12)
    assert min(v.latency_ms for _, v in history if isinstance(v, Passed)) == 0.5


def test_source_whose_seed_failed_gets_nothing(toy: Task) -> None:
    seeds = tasks.seeds(toy)
    history: list[tuple[Candidate, Verdict]] = [(seed, passed(1.0)) for seed in seeds[:2]]
    history.append((seeds[2], BuildFailed(log="no")))
    batch = Tuner(toy, seeds, CPU, 0).propose(history, 100)
    assert len(batch) == 10
    assert {candidate.parents for candidate in batch} == {(seeds[1].id,)}


def test_nothing_is_left_where_no_seed_passed(toy: Task) -> None:
    seeds = tasks.seeds(toy)
    assert Tuner(toy, seeds, CPU, 0).propose([(seed, BuildFailed(log="no")) for seed in seeds], 5) == []


def test_combination_beyond_the_device_is_never_tried() -> None:
    task = tasks.load("vector_add", "cuda")
    seed = Candidate(
        task=task.name,
        target="cuda",
        operator="seed",
        proposer="seed",
        note="1_x.cu",
        tunables={"THREADS": 512},
        source=(
            "// launch k: grid(1) block(THREADS) smem(THREADS*64)\n#define THREADS 512 // tune: 256 512 1024 2048\n"
            'extern "C" __global__ void k() {}'
        ),
    )
    gpu = Device(name="g", target="cuda", arch="sm_86", sm_count=1, smem_optin=48 << 10)
    variants = Tuner(task, [seed], gpu, 0).propose([(seed, passed(1.0))], 9)
    assert [variant.tunables for variant in variants] == [{"THREADS": 256}]


def test_without_a_model_the_tuner_is_chosen() -> None:
    assert choose("auto") == ("tuner", "no model is given (--model, --command): the tuner proposes")
    assert choose("tuner", ["m"])[0] == "tuner"
    assert choose("auto", ["m"]) == ("engineer", "asking m")
    with pytest.raises(BadInput, match="proposer 'engineer' wants a model"):
        choose("engineer")


def test_unknown_proposer_lists_those_there_are() -> None:
    with pytest.raises(BadInput, match="unknown proposer 'oracle'; available: auto, engineer, tuner"):
        choose("oracle")
