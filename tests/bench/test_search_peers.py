"""The bench of searches side by side: kernels of parts, the scripted engineer, sessions, our search in one of them."""

import json
import random
import urllib.request
from pathlib import Path

import pytest

from agent.engineer.edits import apply_edits
from agent.engineer.records import Plan
from agent.engineer.reply import read_plan, source_fault
from bench.peers import contenders, layernorm, made_up
from bench.peers.family import Family, Genome, crossed, drawn, moved
from bench.peers.scripted import answer
from bench.peers.session import Outcome, Session, serving
from bench.search_peers import OURS, Report, Searched, contestants, curve, made_up_arena, markdown, searched

FAMILIES = pytest.mark.parametrize("family", [made_up.family(), layernorm.family()], ids=["made up", "layernorm"])
PLANNED = "# The plan to carry out\n\n- Change: {change}\n"


def fenced(family: Family, genome: Genome) -> str:
    return f"```cpp\n{family.text(genome)}```\n"


def wandered(family: Family, seed: int, steps: int = 6) -> Genome:
    rng, genome = random.Random(seed), family.start
    for _ in range(steps):
        genome = moved(genome, drawn(family, genome, rng))
    return genome


# ---------------------------------------------------------------- kernels of parts


@FAMILIES
@pytest.mark.parametrize("seed", range(8))
def test_kernel_is_read_back_from_its_text(family: Family, seed: int) -> None:
    genome = wandered(family, seed)
    assert family.read(family.text(genome)) == genome
    assert family.read("int main() {}") is None


@FAMILIES
@pytest.mark.parametrize("seed", range(8))
def test_edits_make_one_text_of_the_other(family: Family, seed: int) -> None:
    before, after = wandered(family, seed), wandered(family, seed + 100)
    blocks = [f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE" for old, new in family.edits(before, after)]
    assert apply_edits("\n".join(blocks), family.text(before)) == family.text(after)


@FAMILIES
def test_first_kernel_fits_the_contract(family: Family) -> None:
    assert source_fault(family.text(family.start), layernorm.task()) == ""


def test_crossover_takes_from_both_and_from_nobody_else() -> None:
    family = made_up.family()
    one, other = wandered(family, 1, 20), wandered(family, 2, 20)
    child = moved(one, crossed(one, other, random.Random(0)))
    assert all(child.parts[name] in (one.parts[name], other.parts[name]) for name in child.parts)
    assert child not in (one, other)


# ---------------------------------------------------------------- the scripted engineer


def test_plan_is_asked_for_and_carried_out() -> None:
    family, rng = made_up.family(), random.Random(3)
    asked = f"Kernel ab, with ROWS=16:\n\n{fenced(family, family.start)}\n"
    plan = read_plan(answer("", asked + '{"expected_speedup": 1.3}', family, rng))
    assert isinstance(plan, Plan)
    reply = answer("", asked + PLANNED.format(change="memory=memory_2, AHEAD=8"), family, rng)
    assert reply.startswith("```cpp\n// A made-up kernel")
    written = family.read(reply)
    assert written is not None
    assert written.parts["memory"] == "memory_2"
    assert written.knobs == {"ROWS": 16, "AHEAD": 8, "WAYS": 2}


def test_parent_stands_under_its_heading_whatever_is_shown_before() -> None:
    family = made_up.family()
    shown = [wandered(family, seed, 20) for seed in (1, 2)]
    user = f"# Prior programs\n\n{fenced(family, shown[0])}\n# Current program\n\n{fenced(family, shown[1])}"
    system = "<NAME>\n</NAME>\n<<<<<<< SEARCH\n=======\n>>>>>>> REPLACE"
    reply = answer(system, user + PLANNED.format(change="ROWS=32"), family, random.Random(0))
    assert "<DIFF>" in reply
    assert apply_edits(reply, family.text(shown[1])) == family.text(moved(shown[1], [("ROWS", "32")]))


def test_prompt_without_a_kernel_gets_prose() -> None:
    assert "no kernel" in answer("", "Hello.", made_up.family(), random.Random(0))


# ---------------------------------------------------------------- landscapes and sessions


@pytest.mark.parametrize("seed", range(3))
def test_nothing_lies_above_the_highest_and_the_start_is_one(seed: int) -> None:
    landscape, family = made_up.Landscape(seed), made_up.family()
    highest = landscape.highest()
    assert landscape.score(family.start) == 0
    scores = [landscape.score(wandered(family, walk, 30)) for walk in range(50)]
    assert all(score is None or score <= highest for score in scores)


def test_flaw_does_not_build_and_tunables_count() -> None:
    landscape, family = made_up.Landscape(0), made_up.family()
    assert landscape.evaluate(family.text(moved(family.start, [("flaw", "yes")])), {}).status == "BuildFailed"
    turned = family.text(moved(family.start, [("ROWS", "32")]))
    given = landscape.evaluate(family.text(family.start), {"ROWS": 32})
    assert given.true == landscape.evaluate(turned, {}).true != 1.0


def test_session_judges_over_http_until_its_budget_is_spent() -> None:
    session = Session(made_up.family(), 0, lambda source, tunables: Outcome(status="Passed", speedup=2.0), budget=2)
    with serving(session) as address:
        statuses = []
        for _ in range(3):
            request = urllib.request.Request(f"{address}/evaluate", json.dumps({"source": "x"}).encode())
            with urllib.request.urlopen(request) as reply:
                statuses.append(json.load(reply)["status"])
    assert statuses == ["Passed", "Passed", "budget spent"]
    assert session.spent.is_set()
    assert curve(session) == [2.0, 2.0]


def test_our_search_and_the_simple_ones_spend_their_evaluations() -> None:
    for search in (contenders.ours, contenders.best_of_n, contenders.always_the_best):
        family, arena = made_up.family(), made_up_arena(0)
        session = Session(family, 0, arena.evaluate, 5)
        found = searched("any", search, session, arena, 0)
        assert len(found.best) == 5
        assert found.best == sorted(found.best)
        assert found.requests >= 1


def test_whoever_is_not_installed_is_passed_over_with_a_line() -> None:
    said: list[str] = []
    found = contestants(None, "made up", said.append)
    assert OURS in found
    assert "OpenEvolve" not in found
    assert said == [f"{name} is passed over: no --others given" for name in ("OpenEvolve", "ShinkaEvolve")]


def test_contenders_are_compared_seed_by_seed(tmp_path: Path) -> None:
    made = [
        Searched(contender=name, seed=seed, best=[1.0, factor * seed], failed=0, requests=2, seconds=1.0, highest=10.0)
        for name, factor in ((OURS, 2.0), ("other", 1.0))
        for seed in (1, 2, 3)
    ]
    report = Report(command="c", measured_at="t", device="d", load=0.0, versions={}, budget=2, notes=[], searches=made)
    (line,) = [line for line in markdown({"made up": report}).split("\n") if line.startswith("| other")]
    assert "| 2.00 (2.00–2.00) |" in line
