"""What is read in a reply: which ask it answers, its kernel, its note; and what is said of one that cannot be read."""

import json

import pytest

from agent.asking.document import MARK
from agent.asking.replies import Answer, Unreadable, read
from sandbox.errors import BadInput

KERNEL = "// one loop\nvoid toy() {}\n"
MARKDOWN = f"{MARK} 3f2a9c01d2\n\n## **Unrolled twice.**\n\n```cpp\n{KERNEL}```\nIt loses below 1 KB.\n"


def only(name: str, text: str, ask: str | None = None) -> Answer:
    (found,) = read(name, text, ask)
    assert isinstance(found, Answer)
    return found


def test_markdown_names_its_ask_and_its_first_words_are_the_note() -> None:
    found = only("reply.md", MARKDOWN)
    assert (found.ask, found.change) == ("3f2a9c01d2", "Unrolled twice.")
    assert KERNEL in found.text


@pytest.mark.parametrize(
    "line", [f"> `{MARK} 3f2a9c01`", f"**{MARK}** 3f2a9c01", f"{MARK} `3f2a9c01`", f"   {MARK} 3f2a9c01  "]
)
def test_line_with_the_ask_may_be_dressed_up(line: str) -> None:
    assert only("reply.md", f"{line}\n{KERNEL}").ask == "3f2a9c01"


def test_ask_of_the_command_line_stands_in_and_must_agree() -> None:
    assert only("reply.md", f"```\n{KERNEL}```", "3f2a").ask == "3f2a"
    assert only("reply.md", MARKDOWN, "3f2a").ask == "3f2a"
    with pytest.raises(BadInput, match=r"reply\.md answers ask 3f2a9c01d2, got --ask beef"):
        read("reply.md", MARKDOWN, "beef")


def test_reply_that_names_no_ask_is_refused_with_what_is_wanted() -> None:
    with pytest.raises(
        BadInput, match=r"reply\.md does not say which ask it answers; wanted a line `warpsmith-ask: ID`"
    ):
        read("reply.md", f"```cpp\n{KERNEL}```\n")


def test_kernel_file_is_the_source_as_it_is() -> None:
    found = only("kernel.cpp", f"// {MARK} 3f2a\n{KERNEL}")
    assert (found.ask, found.source, found.change) == ("3f2a", f"// {MARK} 3f2a\n{KERNEL}", "")


def test_markdown_may_answer_several_asks_each_after_its_line() -> None:
    first, second = read("all.md", MARKDOWN + MARKDOWN.replace("3f2a9c01d2", "beef"))
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert (first.ask, second.ask) == ("3f2a9c01d2", "beef")
    assert second.place == "all.md line 10"
    assert second.change == "Unrolled twice."


def test_edits_and_code_are_no_note() -> None:
    edits = "<<<<<<< SEARCH\nvoid toy() {}\n=======\nint x;\n>>>>>>> REPLACE"
    assert only("r.md", f"{MARK} 3f\n{edits}\nAn x more.").change == "An x more."
    assert only("r.md", f"{MARK} 3f\n```\n{KERNEL}```").change == ""


def test_json_object_list_and_lines_say_the_same() -> None:
    one = {"ask": "3f2a", "source": KERNEL, "note": "a", "proposer": "ann", "tunables": {"T": 2}}
    other = {"ask": "beef", "reply": f"```\n{KERNEL}```"}
    listed = read("batch.json", json.dumps([one, other], indent=1))
    lines = read("batch.jsonl", f"{json.dumps(one)}\n\n{json.dumps(other)}\n")
    assert [answer.model_copy(update={"place": ""}) for answer in listed if isinstance(answer, Answer)] == [
        answer.model_copy(update={"place": ""}) for answer in lines if isinstance(answer, Answer)
    ]
    assert [answer.place for answer in lines] == ["batch.jsonl line 1", "batch.jsonl line 3"]
    assert only("-", json.dumps(one)).tunables == {"T": 2}


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"ask": "3f"}, "wanted either a reply or a source"),
        ({"ask": "3f", "reply": "a", "source": "b"}, "wanted either a reply or a source"),
        ({"reply": "a"}, "ask: Field required"),
        ({"ask": "3f", "reply": "a", "kernel": "b"}, "kernel: Extra inputs are not permitted"),
        ({"ask": "3f", "source": "a", "tunables": {"T": "x"}}, "tunables.T: Input should be a valid integer"),
        ({"ask": "beef", "source": "a"}, "it answers ask beef, got --ask 3f"),
        ({"ask": "3f", "source": "a\ud800"}, "it holds a character that is none (a lone surrogate)"),
        ({"ask": "3f", "source": "a", "note": "\udfff"}, "it holds a character that is none (a lone surrogate)"),
        ("text", 'got "text", wanted an object with ask and reply'),
    ],
)
def test_one_bad_answer_costs_none_of_the_others(item: object, reason: str) -> None:
    ask = "3f" if "beef" in str(item) else None
    bad, good = read("b.json", json.dumps([item, {"ask": "3f", "source": KERNEL}]), ask)
    assert isinstance(bad, Unreadable)
    assert bad.place == "b.json answer 1"
    assert bad.reason.startswith(reason)
    assert isinstance(good, Answer)


def test_broken_line_is_named_and_the_others_are_read() -> None:
    for broken in ('{"ask": ', f'{{"ask": {"9" * 5000}}}'):
        bad, good = read("b.jsonl", f"{broken}\n{json.dumps({'ask': '3f', 'source': KERNEL})}\n")
        assert isinstance(bad, Unreadable)
        assert (bad.place, bad.reason[:8]) == ("b.jsonl line 1", "not JSON")
        assert isinstance(good, Answer)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.md", " \n", r"r\.md is empty; wanted a reply"),
        ("r.json", "{", r"r\.json is not JSON: "),
        ("r.json", "[]", r"r\.json holds no answer; wanted at least one"),
    ],
)
def test_file_without_any_answer_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(name, text)
