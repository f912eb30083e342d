"""Where the time of a judgement goes."""

import io
from collections import defaultdict

from rich.console import Console

from agent import render
from agent.stopwatch import Times, Watched, WatchedPeer, _stages


class Peer:
    """Answers, and knows something else besides."""

    pid = 7

    def ask(self, operation: str, **fields: int) -> dict[str, int]:
        return {"asked": len(operation), **fields}


def test_requests_are_timed_by_what_was_asked() -> None:
    tally: dict[str, float] = defaultdict(float)
    watched = WatchedPeer(Peer(), "worker", tally)
    assert watched.ask("load", key=1) == {"asked": 4, "key": 1}
    assert watched.pid == 7
    assert list(tally) == ["worker load"]
    assert tally["worker load"] > 0


def test_stages_are_means_over_all_candidates_longest_first() -> None:
    judged = [
        Watched(candidate="1", verdict="Passed", seconds=3.0, stages={"judge: build": 1.0, "referee: compare": 2.0}),
        Watched(candidate="2", verdict="BuildFailed", seconds=1.0, stages={"judge: build": 1.0}),
    ]
    stages = _stages(judged)
    assert [(stage.what, stage.seconds, stage.share) for stage in stages] == [
        ("judge: build", 1.0, 0.5),
        ("referee: compare", 1.0, 0.5),
    ]
    times = Times(
        task="toy", device="box", sandbox="local", opened_s=2.0, judgements=tuple(judged), stages=tuple(stages)
    )
    console = Console(width=100, file=io.StringIO(), color_system=None, record=True)
    console.print(render.times(times, "no engine"))
    text = console.export_text()
    assert "toy · box · sandbox local (no engine)" in text
    assert "1,000.0" in text
    assert "1,800 candidates an hour" in text
