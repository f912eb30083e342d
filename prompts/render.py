"""From a context to the messages of a prompt: for a plan, for the code that carries it out, or for both in one.

The system message depends on the target, the device and the task only, so that a provider's cache of prefixes serves
every prompt of a run; what differs stands in the user's message. Not covered: asking, and reading the reply (engineer).
"""

from __future__ import annotations

import random
import re
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
)

from prompts.abi import differences
from prompts.hidden import concealed, names_hidden
from prompts.records import PARENTS, Context, Exhibit, Foreign, Idea, Message, PartExhibit
from prompts.words import ratio, size, verdict_words, workload_words
from sandbox.contract import Candidate, Device, Task
from sandbox.errors import BadInput, PlanError
from sandbox.plan import CUDA_FIGURES, parse
from sandbox.resources import Limits, limits
from sandbox.signature import prototype

TEMPLATES = Path(__file__).parent / "templates"
SUFFIX = ".md.j2"
SHORT_ID = 10
LEAST_KEPT, MOST_KEPT = 0.25, 0.5
"""Bounds of the share of the menu that a prompt shows."""


def render_plan(context: Context, rng: random.Random, folder: Path | None = None) -> list[Message]:
    """The messages that ask for a plan; `rng` draws the strategies shown.

    Templates in `folder` stand in for ours of the same name. BadInput names the file and the line of what is wrong.
    """
    environment = _environment(folder)
    return _messages(environment, context, "plan", _asked(context) | _drawn_menu(environment, context, rng))


def render_code(context: Context, folder: Path | None = None) -> list[Message]:
    """The messages that ask for code, for `context.plan` where there is one. As `render_plan` otherwise."""
    return _messages(_environment(folder), context, "code", _asked(context))


def render_ask(context: Context, rng: random.Random, folder: Path | None = None) -> list[Message]:
    """The messages that ask for code at once, with no plan before it. As `render_plan` otherwise."""
    environment = _environment(folder)
    return _messages(environment, context, "ask", _asked(context) | _drawn_menu(environment, context, rng))


def check(folder: Path) -> None:
    """BadInput where a template in `folder` stands in for none of ours, or is misspelt. Not covered: variables."""
    environment = _environment(folder)
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        _template(environment, path.name)


def _drawn_menu(environment: Environment, context: Context, rng: random.Random) -> dict[str, object]:
    return {"strategies": drawn(_entries(_rendered(environment, "strategies", **_setting(context))), rng)}


def drawn(entries: list[str], rng: random.Random) -> list[str]:
    """Some of the entries in their order: each is kept with one chance, drawn anew for each prompt; never none."""
    chance = rng.uniform(LEAST_KEPT, MOST_KEPT)
    return [entry for entry in entries if rng.random() < chance] or [rng.choice(entries)]


def _entries(menu: str) -> list[str]:
    """One per line that starts with a dash; continued by lines that are indented."""
    joined = re.sub(r"\n +", " ", menu)
    entries = [line[2:].strip() for line in joined.splitlines() if line.startswith("- ")]
    if not entries:
        raise BadInput(f"template strategies{SUFFIX}: got no line that starts with '- ', wanted one per strategy")
    return entries


def _messages(environment: Environment, context: Context, name: str, values: dict[str, object]) -> list[Message]:
    system = _rendered(environment, "system", **_setting(context))
    user = _rendered(environment, name, **_setting(context), **values)
    return [Message(role="system", content=system), Message(role="user", content=user)]


# ---------------------------------------------------------------- values


def _setting(context: Context) -> dict[str, object]:
    """What is the same for every prompt of a run."""
    task, device = _without_held_out(context.task), context.device
    return {
        "task": task,
        "device": device,
        "arch": device.arch,
        "limits": _limits(device),
        "l2": f"{size(device.l2_bytes)}B",
        "prototype": prototype(task, task.name),
        "expression_names": ", ".join(_expression_names(task)),
        "dtypes": list(dict.fromkeys(workload.dtype for workload in task.workloads)),
        "workloads": [workload_words(task, workload, device) for workload in task.workloads],
        "reference": _reference(task),
    }


def _asked(context: Context) -> dict[str, object]:
    """What differs from prompt to prompt."""
    wanted = PARENTS[context.operator]
    if len(context.parents) < wanted:
        raise ValueError(f"operator {context.operator!r} got {len(context.parents)} parents, wanted {wanted}")
    return {
        "operator": context.operator,
        "parents": [_shown(exhibit, context) for exhibit in context.parents],
        "inspirations": [_shown(exhibit, context) for exhibit in context.inspirations],
        "foreign": [_foreign(kernel) for kernel in context.foreign],
        "parts": [_part(part, context) for part in context.parts],
        "glue": context.glue,
        "ideas": [_idea(idea, context.task) for idea in context.ideas],
        "lessons": [concealed(line, context.task) for line in context.lessons],
        "plan": context.plan,
        "notes": concealed(context.notes, context.task),
    }


def _without_held_out(task: Task) -> Task:
    return task.model_copy(update={"held_out": ()})


def _limits(device: Device) -> Limits | None:
    """What an SM has to give; None for a CPU, and for a GPU newer than our table."""
    if device.target == "cpu":
        return None
    try:
        return limits(device.arch)
    except BadInput:
        return None


def _expression_names(task: Task) -> list[str]:
    ints = [scalar.name for scalar in task.scalars if scalar.type == "int"]
    return [*task.axes, *ints, "itemsize", *(CUDA_FIGURES if task.target == "cuda" else ())]


def _reference(task: Task) -> str:
    """The Python text of what is to be computed; that of a PyTorch file stands beside its wrapper."""
    path = task.folder / ("source.py" if task.module else "reference.py")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"cannot read the reference of task {task.name!r}: {exc}") from exc


def _shown(exhibit: Exhibit, context: Context) -> dict[str, object]:
    """As seen from the task it was written for; the held-out workloads of both are secret."""
    candidate, other = exhibit.candidate, exhibit.elsewhere
    task = other or context.task
    verdict = verdict_words(exhibit, task)
    return {
        "id": candidate.id[:SHORT_ID],
        "source": candidate.source.strip("\n"),
        "fence": _fence(candidate.source),
        "tunables": _changed_tunables(candidate, task),
        "verdict": concealed(verdict, context.task) if other else verdict,
        "elsewhere": _elsewhere(other, context.task) if other else None,
    }


def _elsewhere(other: Task, task: Task) -> dict[str, object]:
    """Another task, and how its kernels are called otherwise than those of the task at hand."""
    return {
        "task": other.name,
        "summary": other.summary,
        "prototype": prototype(other, other.name),
        "differences": list(differences(task, other)),
    }


def _foreign(kernel: Foreign) -> dict[str, object]:
    source = kernel.candidate.source
    given = {"id": kernel.candidate.id[:SHORT_ID], "source": source.strip("\n"), "fence": _fence(source)}
    return {"task": kernel.task, "summary": kernel.summary, "speedup": ratio(kernel.speedup), **given}


def _part(part: PartExhibit, context: Context) -> dict[str, object]:
    return {
        "name": part.task.name,
        "summary": part.task.summary,
        "prototype": prototype(part.task, part.task.name),
        "exhibit": _shown(part.exhibit.model_copy(update={"elsewhere": part.task}), context),
    }


def _fence(source: str) -> str:
    return "`" * (1 + max((len(run) for run in re.findall("`{2,}", source)), default=2))


def _changed_tunables(candidate: Candidate, task: Task) -> str:
    """The values that differ from the source's own defaults; all of them where it has no readable plan."""
    try:
        defaults = {tunable.name: tunable.default for tunable in parse(candidate.source, task).tunables}
    except PlanError:
        defaults = {}
    return " ".join(f"{name}={value}" for name, value in candidate.tunables.items() if defaults.get(name) != value)


def _idea(idea: Idea, task: Task) -> dict[str, str]:
    return {
        "change": idea.plan.change,
        "outcome": concealed(idea.outcome, task, thorough=names_hidden(idea.outcome, task)),
    }


# ---------------------------------------------------------------- templates


def _environment(folder: Path | None) -> Environment:
    if folder is not None:
        _check_folder(folder)
    return _loading(folder)


@cache
def _loading(folder: Path | None) -> Environment:
    """Kept, so that templates are compiled once; those that change are read again."""
    loaders: list[BaseLoader] = [FileSystemLoader(TEMPLATES)]
    if folder is not None:
        loaders.insert(0, FileSystemLoader(folder))
    # The texts are Markdown with C++ in it; HTML escaping would break both.
    return Environment(
        loader=ChoiceLoader(loaders),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise BadInput(f"folder of templates {folder} does not exist")
    known = {path.name for path in TEMPLATES.glob(f"*{SUFFIX}")}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if path.name not in known and not path.name.startswith("_"):
            wanted = f"{', '.join(sorted(known))}, or a name that starts with _"
            raise BadInput(f"{path} stands in for no template; wanted {wanted}")


def _rendered(environment: Environment, name: str, **values: object) -> str:
    template = _template(environment, f"{name}{SUFFIX}")
    try:
        text = template.render(**values)
    except TemplateSyntaxError as exc:
        raise _misspelt(exc) from exc
    except UnicodeDecodeError as exc:
        raise _no_utf8(f"{name}{SUFFIX}", exc) from exc
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, OSError) as exc:
        place = next(_template_lines(exc), None)
        if place is None:
            raise
        raise BadInput(f"{place}: {exc}") from exc
    return text.strip() + "\n"


def _template(environment: Environment, name: str) -> Template:
    try:
        return environment.get_template(name)
    except TemplateSyntaxError as exc:
        raise _misspelt(exc) from exc
    except UnicodeDecodeError as exc:
        raise _no_utf8(name, exc) from exc


def _no_utf8(name: str, exc: UnicodeDecodeError) -> BadInput:
    return BadInput(f"template {name}, or one that it includes, is not UTF-8: {exc}")


def _misspelt(exc: TemplateSyntaxError) -> BadInput:
    return BadInput(f"{exc.filename or exc.name}: line {exc.lineno}: {exc.message}")


def _template_lines(exc: BaseException) -> Iterator[str]:
    """Lines of templates on the way to an error, the innermost first."""
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        if frame.filename.endswith(SUFFIX):
            yield f"{frame.filename}: line {frame.lineno}"
