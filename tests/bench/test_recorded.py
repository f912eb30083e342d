"""The recorded landscape: every kernel once, and looked up by what it is."""

import math

import pytest

from bench.peers import recorded
from bench.peers.family import FLAW
from bench.peers.recorded import Record, Recorded


@pytest.fixture
def landscape() -> Recorded:
    speedups = {recorded.key(genome): 1.0 + 0.01 * i for i, genome in enumerate(recorded.genomes())}
    wrong = {
        name: None if any(option in name for option in recorded.WRONG) else value for name, value in speedups.items()
    }
    return Recorded(1, Record(command="", measured_at="", device="", axes={}, speedups=wrong))


def test_every_kernel_has_its_place(landscape: Recorded) -> None:
    family, start = landscape.family, landscape.family.start
    outcome = landscape.evaluate(family.text(start), {})
    assert outcome.true == landscape.record.speedups[recorded.key(start)]
    assert outcome.speedup == pytest.approx(outcome.true, rel=0.1)
    for rows in recorded.KNOBS["ROWS"]:
        assert landscape.evaluate(family.text(start), {"ROWS": rows}).true == outcome.true, "one thread has no chunks"


def test_knobs_count_where_they_do_something(landscape: Recorded) -> None:
    text = landscape.family.text(landscape.family.start)
    parallel = text.replace("// part loop: one_thread", "// part loop: dynamic")
    found = {landscape.evaluate(parallel, {"ROWS": rows}).true for rows in recorded.KNOBS["ROWS"]}
    assert len(found) == len(recorded.KNOBS["ROWS"])


def test_wrong_and_broken_kernels_are_refused(landscape: Recorded) -> None:
    text = landscape.family.text(landscape.family.start)
    wrong = text.replace("// part moments: two_passes", "// part moments: half_precise")
    assert landscape.evaluate(wrong, {"AHEAD": 4}).status == "Incorrect"
    assert (
        landscape.evaluate(text.replace("// the parts end here", f"{FLAW}\n// the parts end here"), {}).status
        == "BuildFailed"
    )
    assert landscape.evaluate("int main() {}", {}).status == "BuildFailed"


def test_the_best_is_the_best_that_is_right(landscape: Recorded) -> None:
    right = [speedup for speedup in landscape.record.speedups.values() if speedup is not None]
    assert landscape.highest() == math.log(max(right))
