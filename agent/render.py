"""Records as words and tables for a person. Numbers only come from records; nothing is computed here.

Not covered: JSON, which is the records themselves.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from agent import words
from agent.boards import leaderboard
from agent.words import (
    NAMED,
    conditions_words,
    label,
    milliseconds,
    percent,
    quantity,
    ratio,
    reason,
    resource_words,
    sanitizer_words,
    short,
    tunables,
    usd,
    verdict_words,
)
from sandbox.contract import Candidate, Judgement, Passed, Profile, Task, Timing

if TYPE_CHECKING:
    from agent.building import BuildReport
    from agent.costs import Costs, Share
    from agent.doctor import Finding
    from agent.exporting import Exported
    from agent.preview import Preview
    from agent.replay import Read, Replayed
    from agent.session import Outcome
    from agent.stopwatch import Times
    from agent.tasks import Overview
    from agent.verifying import Verified
    from archive import ImportReport, Row

LOG_LINES = 12
BUILD_LEGEND = (
    "registers a thread; spills and shared memory in bytes a thread and a block; occupancy: share of warp slots"
)


# ---------------------------------------------------------------- one candidate


def candidate_page(candidate: Candidate, judgements: Sequence[Judgement], lineage: Sequence[Candidate]) -> Group:
    """Everything the archive knows of a candidate."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("candidate", candidate.id)
    facts.add_row("task", f"{candidate.task} · {candidate.target}")
    facts.add_row("by", f"{candidate.proposer} ({candidate.operator}) {candidate.note}")
    facts.add_row("tunables", tunables(candidate.tunables))
    others = {c.id: f" (of {c.task})" for c in lineage if c.task != candidate.task}
    facts.add_row("lineage", " → ".join(f"{label(c)}{others.get(c.id, '')}" for c in lineage))
    pages = [part for judgement in judgements for part in _judgement_parts(judgement)]
    return Group(facts, *(pages or [Text("not judged yet")]), Text(), source(candidate))


def source(candidate: Candidate) -> RenderableType:
    """The source, in colours where there are any."""
    return Syntax(candidate.source, "cuda" if candidate.target == "cuda" else "cpp", background_color="default")


def _judgement_parts(judgement: Judgement) -> Iterator[RenderableType]:
    verdict = judgement.verdict
    confirmed = " (confirmed)" if isinstance(verdict, Passed) and verdict.confirmed else ""
    yield Text(f"\n{judgement.judged_at[:19]} on {judgement.device}: {verdict_words(judgement)}{confirmed}")
    if isinstance(verdict, Passed):
        yield timings(verdict.timings)
        yield from circumstances(verdict)
        yield from examined(verdict)
    else:
        yield Text("\n".join(reason(judgement).splitlines()[:LOG_LINES]))


def timings(measured: Iterable[Timing]) -> Table:
    """Latency of the candidate and each baseline, by workload, in milliseconds."""
    table = _table()
    table.add_column("workload", overflow="fold")
    for name in ("ms", "95 %", "roof"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("baselines, fastest first", overflow="fold")
    for timing in measured:
        own = timing.candidate
        interval = f"{milliseconds(own.low_ms)}–{milliseconds(own.high_ms)}"
        numbers = (milliseconds(own.median_ms), interval, percent(timing.roofline_share))
        table.add_row(timing.workload, *numbers, _baselines(timing))
    return table


def _baselines(timing: Timing) -> str:
    ordered = sorted(timing.baselines.items(), key=lambda item: item[1].median_ms)
    return ", ".join(f"{name}\u00a0{milliseconds(measured.median_ms)}" for name, measured in ordered)


def circumstances(passed: Passed) -> Iterator[RenderableType]:
    """What must be known beside the timings: why they decide nothing, which baselines are missing, the GPU's clocks."""
    if passed.disturbed:
        yield Text(f"timings decide nothing: {passed.disturbed}", style="bold yellow")
    missing = {(name, why) for timing in passed.timings for name, why in timing.missing.items()}
    for name, why in sorted(missing):
        yield Text(f"not timed, {name}: {why}", style="yellow")
    if passed.conditions and passed.conditions.sm_mhz:
        yield Text(conditions_words(passed.conditions), style="dim")


def examined(passed: Passed) -> Iterator[RenderableType]:
    """What compilers, sanitizers and a profiler say of a candidate; nothing where none of them was asked."""
    if passed.resources:
        yield Text("\n" + "\n".join(dict.fromkeys(resource_words(kernel) for kernel in passed.resources)))
    if passed.sanitizers:
        yield Text("\n" + "\n".join(sanitizer_words(report) for report in passed.sanitizers))
    if passed.profile:
        yield from counters(passed.profile)


def counters(profile: Profile) -> Iterator[RenderableType]:
    """One column for each kernel launch, one row for each counter."""
    if not profile.kernels:
        yield Text(f"\n{profile.note}")
        return
    table = _table()
    table.add_column(f"{profile.tool}, {profile.workload}", overflow="fold")
    table.add_column("unit", overflow="fold")
    for kernel in profile.kernels:
        table.add_column(kernel.kernel, justify="right", overflow="fold")
    found = [{counter.name: counter.value for counter in kernel.counters} for kernel in profile.kernels]
    units = {counter.name: counter.unit for kernel in profile.kernels for counter in kernel.counters}
    for name, unit in units.items():
        table.add_row(name, unit, *(quantity(values.get(name)) for values in found))
    yield Text()
    yield table
    if profile.note:
        yield Text(profile.note, style="dim")


# ---------------------------------------------------------------- runs, differences, builds, machines


def outcome(outcome: Outcome, width: int) -> RenderableType:
    """The last lines of a run."""
    verdicts = ", ".join(f"{count} {status}" for status, count in outcome.verdicts.items())
    how = "interrupted" if outcome.status == "drained" else outcome.status
    lines = [f"run {outcome.run} {how}: {outcome.evals} judged ({verdicts}) in {outcome.seconds:.0f} s"]
    lines += [_winner(workload, winner, outcome.leaderboard) for workload, winner in outcome.winners.items()]
    if outcome.composed:
        lines.append(f"composed extension: {outcome.composed}")
        lines.append(f"  {'ok' if outcome.ok else 'NOT OK'}: {outcome.message}")
    return Group(leaderboard(outcome.leaderboard, width, limit=20), Text("\n".join(lines)))


def _winner(workload: str, winner: str, board: Sequence[Row]) -> str:
    measured = (entry for row in board if row.candidate == winner for entry in row.workloads)
    found = next((entry for entry in measured if entry.workload == workload), None)
    if found is None:
        return f"  {workload}: {short(winner)}"
    against = ", ".join(f"{ratio(found.speedup[name])}× {name}" for name in NAMED if name in found.speedup)
    return f"  {workload}: {short(winner)} {milliseconds(found.latency_ms)} ms, {against}"


def exported(found: Exported) -> RenderableType:
    """What went into a package, where it lies, and how to use it."""
    table = _table()
    for name in ("task", "workload", "device"):
        table.add_column(name, overflow="fold")
    table.add_column("kernel", no_wrap=True)
    for name in ("ms", *(f"× {name}" for name in NAMED)):
        table.add_column(name, justify="right", no_wrap=True)
    for award in found.awards:
        speedups = (words.times(award.speedup.get(name)) for name in NAMED)
        numbers = (milliseconds(award.latency_ms), *speedups)
        table.add_row(award.task, award.workload, award.device, short(award.candidate), *numbers)
    lines = [f"left out: {name}: {why}" for name, why in found.left_out.items()]
    lines += [f"{each.task} {each.workload} on {each.device}: {each.text}" for each in found.remarks]
    lines += [
        f"{count} kernels: {doubt}" for doubt, count in Counter(a.doubts for a in found.awards if a.doubts).items()
    ]
    lines.append(f"project: {found.project}")
    if found.wheel:
        lines.append(f"wheel: {found.wheel} ({found.wheel_bytes / 2**20:.1f} MiB)")
        lines.append(f"  {'NOT OK: ' if found.ok is False else ''}{found.message}")
    if found.hub:
        lines.append(f"for Hugging Face's kernels: {found.hub}")
    if found.wheel:
        lines += ["", f"pip install {shlex.quote(str(found.wheel))}", f"python -m {found.package} verify"]
    return Group(table, Text("\n".join(["", *lines])))


def verified(findings: Sequence[Verified]) -> RenderableType:
    """Winners of an archive, what they were and what they are here; below, why some are not."""
    table = _table()
    for name in ("task", "kernel", "won on"):
        table.add_column(name, overflow="fold")
    for name in ("× eager there", "× eager here"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for found in findings:
        there, here = (words.times(speedup.get("eager")) for speedup in (found.speedup, found.speedup_here))
        table.add_row(found.task, f"{short(found.candidate)} {found.note}", found.device, there, here, found.status)
    reasons = [f"{short(f.candidate)} {f.status}: {words.first_line(f.reason)}" for f in findings if f.reason]
    holding = sum(found.status == "Passed" for found in findings)
    return Group(table, Text("\n".join(["", *reasons, f"{holding} of {len(findings)} kernels pass here"])))


def costs(found: Costs) -> RenderableType:
    """What a run's models took: by model and operator, and by the candidates that came of it."""
    count = f"{found.total.exchanges} exchange{'' if found.total.exchanges == 1 else 's'}"
    parts: list[RenderableType] = [
        Text(f"run {found.run}: {count}, {usd(found.total.usd)} USD\n", style="bold"),
        _shares(("model", "operator"), found.by_operator),
        Text(),
        _shares(
            ("candidate",), [share.model_copy(update={"of": (short(share.of[0]),)}) for share in found.by_candidate]
        ),
    ]
    if found.total.unpriced:
        parts.append(Text(f"\nof unknown price, counted as 0 USD: {found.total.unpriced}", style="yellow"))
    return Group(*parts)


def _shares(names: tuple[str, ...], shares: Sequence[Share]) -> Table:
    table = _table()
    for name in names:
        table.add_column(name, overflow="fold")
    for name in ("exchanges", "failed", "input", "cached", "output", "reasoning", "seconds", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for share in shares:
        counts = (share.input_tokens, share.cached_tokens, share.output_tokens, share.reasoning_tokens)
        tokens = (f"{count:,}" for count in counts)
        numbers = (str(share.exchanges), str(share.failed), *tokens, f"{share.seconds:.0f}", usd(share.usd))
        table.add_row(*share.of, *numbers)
    return table


def replayed(found: Replayed) -> RenderableType:
    """What a replay found, beside the record."""
    same = sum(read.same for read in found.read)
    known = f"{same} of {len(found.read)} recorded replies give the candidate they gave then"
    lines = [f"run {found.run}: {known if found.read else 'no candidate came of a reply'}"]
    lines += [f"  {short(read.candidate)}: {_instead(read)}" for read in found.read if not read.same]
    if found.again is None:
        return Text("\n".join(lines))
    agreeing = sum(each.same for each in found.compared)
    lines += [f"run {found.again}: {agreeing} of {len(found.compared)} verdicts are of the same kind as then"]
    table = _table()
    table.add_column("candidate", no_wrap=True)
    for name in ("what", f"then, on {found.device_then}", f"now, on {found.device_now}"):
        table.add_column(name, overflow="fold")
    for each in found.compared:
        style = "" if each.same else "red"
        what = each.candidate.note or each.candidate.operator
        confirmed = isinstance(each.then.verdict, Passed) and each.then.verdict.confirmed
        words = (verdict_words(each.then), verdict_words(each.now))
        table.add_row(short(each.candidate.id), f"{what}{' (confirmed)' if confirmed else ''}", *words, style=style)
    return Group(table, Text("\n" + "\n".join(lines)))


def _instead(read: Read) -> str:
    return f"now {short(read.found)}" if read.found else f"now no kernel: {read.reason}"


def preview(found: Preview) -> RenderableType:
    """The first prompts of a run as they would be sent, then what they might cost."""
    parts: list[RenderableType] = []
    for prompt in found.prompts:
        for message in prompt.messages:
            parts += [Text(f"──── {prompt.purpose}, {message.role}", style="bold"), Text(f"\n{message.content}")]
    table = _table()
    table.add_column("model", overflow="fold")
    for name in ("USD an attempt", "at most", "attempts", "USD in all"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found.estimates:
        amounts = [
            "–" if amount is None else usd(float(amount)) for amount in (each.attempt_usd, each.attempt_most_usd)
        ]
        table.add_row(
            each.model, *amounts, str(each.attempts), "–" if each.run_usd is None else usd(float(each.run_usd))
        )
    asked = ", ".join(
        f"{prompt.purpose} {prompt.input_tokens:,} in, {prompt.output_tokens:,} out" for prompt in found.prompts
    )
    about = [
        f"{found.operator} of {short(found.parent) if found.parent else 'the reference'}: {found.why}",
        f"tokens: {asked}",
        f"estimated by {found.rule}",
        f"budget {found.budget_evals} evaluations, {found.budget_usd:.2f} USD; – where the price is not known",
    ]
    return Group(*parts, Text("──── cost\n", style="bold"), table, Text("\n" + "\n".join(about)))


def difference(tunables: dict[str, list[int | None]], lines: Sequence[str]) -> RenderableType:
    """Changed tunables, then a unified diff."""
    text = "\n".join([*(f"{name}: {old} → {new}" for name, (old, new) in tunables.items()), *lines])
    return Syntax(text, "diff", background_color="default", word_wrap=True) if text else Text("no difference")


def builds(title: str, reports: Sequence[BuildReport]) -> RenderableType:
    """One row for each kernel of each specialisation; what was not built stands below, with the reason."""
    table = _table()
    for name in ("seed", "kernel", "for"):
        table.add_column(name, overflow="fold")
    for name in ("registers", "spills", "smem", "threads", "occupancy", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        _add_build(table, report)
    excluded = [Text(f"excluded: {r.seed}: {r.excluded}", style="yellow") for r in reports if r.excluded]
    return Group(Text(f"{title}\n", style="bold"), table, Text(), *excluded, Text(BUILD_LEGEND, style="dim"))


def _add_build(table: Table, report: BuildReport) -> None:
    served = _served(report.workloads)
    seconds = "cached" if report.cached else f"{report.seconds:.3f}"
    if report.excluded:
        table.add_row(report.seed, "excluded", "this device: see below", style="dim")
    elif not report.ok:
        table.add_row(report.seed, "FAILED", served, style="red")
    elif not report.kernels:
        table.add_row(report.seed, "built", served, *["–"] * 5, seconds)
    for kernel in report.kernels:
        sizes = (kernel.registers, kernel.spill_bytes, kernel.smem_bytes, kernel.threads)
        table.add_row(report.seed, kernel.kernel, served, *map(str, sizes), percent(kernel.occupancy), seconds)


def _table() -> Table:
    return Table(header_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)


def _served(workloads: Sequence[str]) -> str:
    more = f" and {len(workloads) - 1} more" if len(workloads) > 1 else ""
    return f"{workloads[0]}{more}"


def times(times: Times, why: str) -> RenderableType:
    """Where the time of a judgement goes."""
    verdicts = _table()
    for name in ("seed", "verdict"):
        verdicts.add_column(name, overflow="fold")
    verdicts.add_column("seconds", justify="right", no_wrap=True)
    for judged in times.judgements:
        verdicts.add_row(judged.candidate, judged.verdict, f"{judged.seconds:.3f}")
    stages = _table()
    stages.add_column("stage", overflow="fold")
    for name in ("ms a candidate", "share"):
        stages.add_column(name, justify="right", no_wrap=True)
    for stage in times.stages:
        stages.add_row(stage.what, f"{stage.seconds * 1e3:,.1f}", f"{stage.share:.1%}")
    title = f"{times.task} · {times.device} · sandbox {times.sandbox} ({why})\n"
    rate = (
        f"\none after another {3600 / times.seconds:,.0f} candidates an hour, {times.seconds:.2f} s each; before the "
    )
    return Group(
        Text(title, style="bold"),
        verdicts,
        Text(),
        stages,
        Text(f"{rate}first, once for the task: {times.opened_s:.1f} s"),
    )


def findings(found: Sequence[Finding]) -> RenderableType:
    """One line for each part, and below a missing one what is done without it."""
    table = Table.grid(padding=(0, 2))
    for finding in found:
        table.add_row("✓" if finding.there else "–", finding.part, Text(finding.detail, overflow="fold"))
        if finding.instead:
            table.add_row("", "", Text(f"→ {finding.instead}", style="dim"))
    return table


def task_table(found: Sequence[Overview]) -> RenderableType:
    """The list of tasks."""
    table = _table()
    for name in ("task", "what", "search workloads"):
        table.add_column(name)
    for task in found:
        counts = ", ".join(f"{count} {target}" for target, count in task.workloads.items())
        table.add_row(task.name, task.summary, counts)
    return table


def task_page(task: Task, prototype: str) -> RenderableType:
    """A task as a proposer may know it: without its held-out workloads."""
    text = [f"{task.name} · {task.target}: {task.summary}", f"version {task.version}, in {task.folder}", ""]
    for kind, tensors in (("out", task.outputs), ("inout", task.inouts), ("in", task.inputs)):
        text += [f"{kind:<6} {t.name}[{', '.join(t.shape)}] {t.dtype}" for t in tensors]
    text += [f"scalar {s.name} {s.type}" + ("" if s.default is None else f" = {s.default}") for s in task.scalars]
    text += ["", f"bytes  {task.bytes_moved}", f"flops  {task.flops}", "", prototype, "", "workloads"]
    return Text("\n".join([*text, *(f"  {workload.name}" for workload in task.workloads)]))


def tallies(report: ImportReport) -> str:
    """What an import did, on one line."""
    parts = [(name, getattr(report, name)) for name in type(report).model_fields]
    return "; ".join(f"{name}: {tally.new} new, {tally.known} known" for name, tally in parts)
