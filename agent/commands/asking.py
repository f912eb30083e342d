"""ask and tell: kernels by people and coding agents."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from agent import config as configuration
from agent.commands.options import NO_TASK, ArchivePath, Json, TaskName, err, open_archive, out, print_json
from agent.engineer.records import Operator
from agent.words import short
from sandbox.errors import BadInput, Infrastructure

if TYPE_CHECKING:
    from agent.asking.asking import Prompt
    from agent.asking.telling import Told, Waiting
    from archive import Archive
    from sandbox.launch import Sandbox

UNFINISHED = "every kernel that was told is on record; `warpsmith tell --pending` judges those that have no verdict"
STYLES = {"Passed": "bold green", "Waiting": "bold yellow"}


def ask(
    task: TaskName = None,
    target: Annotated[
        Literal["auto", "cuda", "cpu"] | None, typer.Option(help="auto takes a GPU where one answers, else the CPU.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="What the kernel is for, where that is not this machine: a name in the archive.")
    ] = None,
    operator: Annotated[
        Operator | None, typer.Option(help="What is asked for; by default the search policy says.")
    ] = None,
    parent: Annotated[
        list[str] | None, typer.Option(help="Id of a candidate to start from; may be given twice, to cross two.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=100, help="How many asks.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Of the random choices.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Folder of your own prompt templates.")] = None,
    archive: ArchivePath = None,
    file: Annotated[Path | None, typer.Option("--out", help="Write the prompts to this file.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print one Markdown document; the default.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list, with the messages as a model gets them.")
    ] = False,
) -> None:
    """A prompt for a kernel, to be answered by a person or a coding agent, now or later, with `tell`."""
    from agent.asking import asking, setting
    from agent.asking import device as devices
    from agent.asking.document import markdown

    if as_markdown and as_json:
        raise BadInput("got --markdown and --json, wanted one of them")
    wanted = configuration.load({"task": task, "target": target, "archive": archive, "seed": seed, "prompts": prompts})
    if not wanted.task:
        raise BadInput(NO_TASK)
    with open_archive(wanted.archive) as opened:
        meant, why = devices.choose(opened, wanted.task, wanted.target, device)
        found = setting.setting_of(opened, wanted, meant)
        given = [opened.candidate(each) for each in parent or ()]
        made = asking.make(found, n, operator, given)
    err.print(_announced(made, why), style="dim", soft_wrap=True)
    text = markdown(made, options=_options(archive))
    if file is not None:
        _write(file, made, None if as_json else text)
    elif as_json:
        print_json([prompt.model_dump(mode="json") for prompt in made])
    else:
        sys.stdout.write(text)


def _options(archive: str | None) -> str:
    """What `tell` has to be given; an address of a database may hold a password, which no prompt needs to know."""
    return f" --archive {'URL' if '://' in archive else shlex.quote(archive)}" if archive else ""


def _announced(made: Sequence[Prompt], why: str) -> str:
    asks = ", ".join(f"{short(prompt.ask)} ({prompt.operator})" for prompt in made)
    return f"asked for {made[0].task} · {made[0].target} · {made[0].device}, {why}: {asks}"


def _write(file: Path, made: Sequence[Prompt], document: str | None) -> None:
    """As a document, or as JSON where there is none."""
    import json

    dumped = [prompt.model_dump(mode="json") for prompt in made]
    text = document or json.dumps(dumped, ensure_ascii=False, indent=2) + "\n"
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise BadInput(f"cannot write {file}: {exc.strerror}") from exc
    if document is None:
        print_json({"file": str(file), "asks": [prompt.ask for prompt in made]})
    else:
        out.print(f"{len(made)} ask{'' if len(made) == 1 else 's'} in {file}", soft_wrap=True)


# ---------------------------------------------------------------- tell


def tell(
    file: Annotated[
        Path | None,
        typer.Argument(help="A reply: Markdown, a kernel, or JSON that may answer several asks; - is stdin."),
    ] = None,
    ask_id: Annotated[
        str | None, typer.Option("--ask", help="Which ask it answers, where the reply does not say.")
    ] = None,
    name: Annotated[str, typer.Option("--as", help="Who wrote it.")] = "",
    judging: Annotated[
        bool, typer.Option("--judge/--no-judge", help="Judge now, or only record, to be judged elsewhere or later.")
    ] = True,
    pending: Annotated[bool, typer.Option("--pending", help="Judge what was recorded and has no verdict.")] = False,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Path of the task, where it is not that of the ask.")
    ] = None,
    sandbox: Annotated[Literal["auto", "docker", "local"] | None, typer.Option(help="Where candidates run.")] = None,
    archive: ArchivePath = None,
    as_json: Json = False,
) -> None:
    """Hand in the reply to an ask: it is recorded and judged. Exit code 0 only where every kernel passed."""
    if pending == (file is not None):
        raise BadInput("give either a FILE with a reply, or --pending")
    if pending and not judging:
        raise BadInput("--pending judges what waits; got --no-judge, too")
    seen: list[Told] = []
    wanted = configuration.load({"archive": archive, "sandbox": sandbox})
    with open_archive(wanted.archive) as opened:
        handed = (
            _pending(opened, task) if pending else _handed(opened, _text(file), str(file), ask_id, name, task, judging)
        )
        try:
            for told in _settled(opened, list(handed), judging, wanted.sandbox):
                seen.append(told)
                if not as_json:
                    _print(told, _options(archive))
        except KeyboardInterrupt:
            err.print(f"interrupted: {UNFINISHED}", soft_wrap=True)
            raise typer.Exit(130) from None
        except Infrastructure:
            err.print(UNFINISHED, soft_wrap=True)
            raise
    if as_json:
        print_json([told.model_dump(mode="json") for told in seen])
    elif not seen:
        out.print("nothing waits to be judged")
    if code := _exit_code(seen):
        raise typer.Exit(code)


def _text(file: Path | None) -> str:
    from agent.importing import read_text

    if str(file) != "-":
        return read_text(Path(str(file)))
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise BadInput(f"standard input is not UTF-8: {exc.reason} at byte {exc.start}") from exc


def _handed(
    archive: Archive, text: str, file: str, ask_id: str | None, name: str, task: str | None, judging: bool
) -> Iterator[Waiting | Told]:
    """What is in the file; one answer that cannot be used costs none of the others."""
    from agent.asking import replies, telling

    for answer in replies.read("standard input" if file == "-" else file, text, ask_id):
        if isinstance(answer, replies.Unreadable):
            yield telling.refused(answer.place, "", answer.reason)
            continue
        try:
            if judging:
                telling.require_here(archive, answer)
            named = answer if answer.proposer else answer.model_copy(update={"proposer": name})
            yield telling.accept(archive, named, task)
        except BadInput as exc:
            yield telling.refused(answer.place, answer.ask, str(exc))


def _pending(archive: Archive, task: str | None) -> Iterator[Waiting | Told]:
    """What waits for a device of this machine; what waits for others is named on stderr."""
    from agent.asking import telling
    from agent.asking.device import at_hand

    for waiting in telling.pending(archive, task):
        if isinstance(waiting, telling.Waiting):
            here = at_hand(waiting.run.target)
            if here is None or here.name != waiting.run.device:
                words = f"{short(waiting.candidate.id)} waits for {waiting.run.device}"
                err.print(words, style="dim", soft_wrap=True)
                continue
        yield waiting


def _settled(archive: Archive, handed: Sequence[Waiting | Told], judging: bool, sandbox: Sandbox) -> Iterator[Told]:
    """Every answer's end. All kernels are on record before the first is judged, so an interruption loses none."""
    from agent.asking import telling
    from agent.asking.bench import Bench

    with contextlib.closing(Bench(sandbox, lambda text: err.print(text, style="dim", soft_wrap=True))) as bench:
        for each in handed:
            if isinstance(each, telling.Told):
                yield each
            elif judging:
                yield telling.judge(archive, each, bench.judge)
            else:
                yield telling.unjudged(each)


def _print(told: Told, options: str) -> None:
    if told.status == "Refused":
        err.print(f"error: {told.place}: {told.words}", style="bold red", soft_wrap=True)
        return
    head = Text.assemble((told.status, STYLES.get(told.status, "bold red")), f"  {told.place}")
    facts = [f"candidate {short(told.candidate)}" if told.candidate else "", told.gain]
    facts.append(f"place {told.rank} on the leaderboard" if told.rank else "")
    parts: list[Any] = [head]
    if line := " · ".join(fact for fact in facts if fact):
        parts.append(Text(line, style="dim"))
    everywhere = f" (each with{options})" if options else ""
    parts += [Text(f"\n{told.words}\n"), Text(f"next: {told.next}{everywhere}\n", style="dim")]
    for part in parts:
        out.print(part, soft_wrap=True)


def _exit_code(seen: Sequence[Told]) -> int:
    if any(told.status == "Refused" for told in seen):
        return 2
    return 0 if all(told.status in ("Passed", "Waiting") for told in seen) else 1
