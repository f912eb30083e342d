"""From an answer to a candidate on record; and why there is none."""

from collections.abc import Callable
from typing import Any

import pytest

from agent.asking import telling
from agent.asking.asking import make
from agent.asking.replies import Answer
from agent.asking.setting import Setting, run_of
from agent.asking.telling import Waiting, accept, pending, told
from archive import Archive
from sandbox.contract import Candidate
from sandbox.errors import BadInput
from tests.agent.asking.conftest import HEAD, judgement

Judged = Callable[..., Candidate]
KERNEL = f"""\
// blocks of T
#ifndef T
#define T 4  // tune: 2 4 8
#endif
{HEAD} {{
    for (int64_t i = 0; i < N; ++i) out[i] = a[i] + b[i];
}}
"""


def answered(setting: Setting, **fields: Any) -> Waiting:
    """The answer to a new ask."""
    parents: Any = fields.pop("parents", [])
    ask = make(setting, 1, "rewrite", parents)[0].ask
    return accept(setting.archive, Answer.model_validate({"ask": ask[:10], "source": KERNEL} | fields))


def test_kernel_is_recorded_with_its_parent_its_author_and_the_exchange(setting: Setting, judged: Judged) -> None:
    parent = judged("int plain;", 1.0)
    found = answered(setting, parents=[parent], proposer="ann\n", note="blocks").candidate
    assert (found.parents, found.operator, found.proposer, found.note) == ((parent.id,), "propose", "ann", "blocks")
    (exchange,) = setting.archive.exchanges(run_of(setting).id)
    assert (exchange.candidate, exchange.model, exchange.operator, exchange.usd) == (found.id, "ann", "rewrite", None)


def test_tunables_come_from_the_answer_else_the_parent_else_the_defaults(setting: Setting) -> None:
    assert answered(setting).candidate.tunables == {"T": 4}
    parent = setting.archive.candidate(
        answered(setting, source=KERNEL + "// p\nint p;\n", tunables={"T": 8}).candidate.id
    )
    assert parent.tunables == {"T": 8}
    child = answered(setting, parents=[parent], source=KERNEL + "// c\nint c;\n").candidate
    assert child.tunables == {"T": 8}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"source": KERNEL.replace("const float* b, ", "")},
            "toy has other parameters than the contract's; got .* wanted",
        ),
        ({"source": KERNEL.replace("toy", "toys")}, "the source has no function toy; wanted extern .C. void toy"),
        ({"source": "", "reply": "I could not think of anything."}, "no fenced code block in the reply"),
        (
            {"source": "", "reply": f"```\n{KERNEL}```\n```\n{KERNEL.replace('T 4', 'T 8')}```"},
            "2 code blocks could each be",
        ),
        ({"tunables": {"T": 3}}, "tunables: .*T"),
        ({"tunables": {"U": 3}}, "tunables: .*U"),
        ({"proposer": "n" * 61}, "the proposer's name has 61 characters, at most 60"),
        ({"ask": "feed"}, "no ask 'feed'; the newest are"),
    ],
)
def test_answer_without_a_kernel_says_why_and_leaves_no_candidate(
    setting: Setting, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        answered(setting, **fields)
    assert not list(pending(setting.archive))


def test_of_two_code_blocks_the_whole_kernel_counts(setting: Setting) -> None:
    reply = f"The inner loop:\n```\nfor (;;) {{}}\n```\nAll of it:\n```\n{KERNEL}```\n"
    assert answered(setting, source="", reply=reply).candidate.source == KERNEL


def test_edits_change_the_parent(setting: Setting, judged: Judged) -> None:
    parent = judged("int plain;", 1.0)
    first = parent.source.splitlines()[1]
    edit = f"<<<<<<< SEARCH\n{first}\n=======\n{first.replace('plain', 'other')}\n>>>>>>> REPLACE\n"
    found = answered(setting, parents=[parent], source="", reply=edit).candidate
    assert found.source == parent.source.replace("plain", "other")


def test_twin_is_refused_with_the_kernel_it_is_like(setting: Setting, judged: Judged) -> None:
    parent, known = judged("int parent;", 1.0), judged("int plain;", 1.0)
    with pytest.raises(BadInput, match=rf"as {known.id[:10]} by test \(int plain;\), which was judged: it is Passed"):
        answered(setting, parents=[parent], source=f"// said otherwise\n{known.source}\n\n")
    waiting = answered(setting)
    with pytest.raises(BadInput, match=rf"as {waiting.candidate.id[:10]} by .* which waits to be judged"):
        answered(setting, source=KERNEL.replace("blocks of T", "T at a time"))


def test_what_was_told_waits_until_it_is_judged_also_in_another_archive(setting: Setting, archive: Archive) -> None:
    waiting = answered(setting)
    archive.export("all.jsonl")
    with Archive.open("other.db") as other:
        other.import_("all.jsonl")
        (found,) = pending(other)
        assert isinstance(found, Waiting)
        assert (found.candidate, found.run) == (waiting.candidate, waiting.run)
        said = telling.judge(other, found, lambda task, candidate: judgement(setting, candidate, 2.0))
        assert (said.status, said.rank, said.latency_ms) == ("Passed", 1, 0.5)
        assert not list(pending(other))
        assert other.history(found.run.id)[0][0] == waiting.candidate
        assert other.run(found.run.id).seconds_spent == 1.0


def test_task_that_has_changed_is_refused(setting: Setting) -> None:
    answered(setting)
    (setting.task.folder / "reference.py").write_text("def reference(a, b):\n    return b + a\n")
    (found,) = pending(setting.archive)
    assert isinstance(found, telling.Told)
    assert found.status == "Refused"
    assert f"the ask was for toy {setting.task.version}, which is now toy" in found.words


@pytest.mark.parametrize(
    ("gain", "words", "advice"),
    [
        (4.0, "2.00x over its parent", "warpsmith run --task"),
        (1.0, "slower: 0.50x", "for another idea"),
        (0.0, "", "--operator repair --parent"),
    ],
)
def test_verdict_says_what_it_gained_and_what_to_do(
    setting: Setting, judged: Judged, gain: float, words: str, advice: str
) -> None:
    waiting = answered(setting, parents=[judged("int plain;", 2.0)])
    found = judgement(setting, waiting.candidate, gain, hidden=True)
    setting.archive.record(found)
    said = told(setting.archive, waiting, found)
    assert said.gain == words
    assert advice in said.next
    assert "N77" not in said.model_dump_json()
