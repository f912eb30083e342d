"""Asks as one Markdown document: what is the same for all of them once, then each with how it is answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.asking.asking import Prompt

MARK = "warpsmith-ask:"
"""Before the id of the ask, on a line of its own in a reply."""
SHORT = 12


def markdown(prompts: Sequence[Prompt], by_tool: bool = False, rules: bool = True, options: str = "") -> str:
    """The document. Asks that were made together have the same system message: the `rules`.

    `by_tool` is for agents that answer with the server's tool `tell` rather than with a file; the command that takes a
    file is shown with `options`.
    """
    system = [prompts[0].messages[0].content] if rules else []
    return "\n".join([*system, *(line for prompt in prompts for line in _asked(prompt, by_tool, options))])


def _asked(prompt: Prompt, by_tool: bool, options: str) -> Iterator[str]:
    yield f"---\n\nAsk {prompt.ask[:SHORT]}: {prompt.operator}, for {prompt.task} · {prompt.target} · {prompt.device}\n"
    yield from (message.content for message in prompt.messages[1:])
    yield "\n# Handing it in\n"
    if by_tool:
        yield f"With the tool `tell`, which judges it: ask `{prompt.ask[:SHORT]}`, and in `note` what you changed.\n"
        return
    yield from (
        "The first line of your reply is this, so that it is known what it answers:\n",
        f"    {MARK} {prompt.ask[:SHORT]}\n",
        "The next line says in one sentence what you changed. Save the reply to a file and hand it in with\n",
        f"    warpsmith tell FILE --as NAME{options}\n",
        "which judges it and prints the verdict.",
        "",
    )
