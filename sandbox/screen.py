"""What a source may not contain, looked for before any compiler sees the text.

A compiler reads files where a source tells it to, and candidate text must not choose them. The screen works
on lines after joining those that end in a backslash, and does not try to tell code from comments or strings:
what merely might be a directive is taken for one. Not covered: what the included system headers do, and assembly
pieced together by macros, which compiler.py looks for in the assembler's input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# A `#` counts as the start of a directive at the start of a line and behind the end of any comment.
STARTS = re.compile(r"^|\*/")
DIRECTIVE = re.compile(r"\s*(?:#|%:)(.*)")
ALLOWED = re.compile(r"\s*(?:(define|undef|if|ifdef|ifndef|elif|else|endif|error|warning|pragma|include)\b|//|$)")
ANGLE_NAME = r"<\s*(?!/)(?![^>]*\.\.)[A-Za-z0-9_+./-]+\s*>"
INCLUDE = re.compile(rf"\s*include\s*{ANGLE_NAME}\s*(//.*|/\*.*)?$")
HAS_FILE = re.compile(r"__has_(include_next|include|embed)\b")
HAS_ANGLE = re.compile(rf"__has_include\s*\(\s*{ANGLE_NAME}\s*\)")
ASKS_FOR_HAS = re.compile(r"(defined\s*\(?|ifn?def)\s*$")
PRAGMA = re.compile(r"(#|%:)\s*pragma\b|_?_[Pp]ragma\b")
PRAGMA_READS = re.compile(r"\b(dependency|pch_preprocess|include_alias|plugin|hdrstop|comment|module|__debug)\b")
ASSEMBLY_READS = re.compile(r'incbin|"[^"]*\.include\b', re.IGNORECASE)


@dataclass(frozen=True)
class Refusal:
    """A line of a source that no compiler gets to see, and the rule that it breaks."""

    line: int
    rule: str


def logical_lines(source: str) -> Iterator[tuple[int, str]]:
    """Lines as the preprocessor sees them, each with the number of its first physical line."""
    start, text = 1, ""
    for number, line in enumerate(source.split("\n"), 1):
        if line.endswith("\\"):
            text += line[:-1]
            continue
        yield start, text + line
        start, text = number + 1, ""
    if text:
        yield start, text


def characters_rule(source: str) -> Refusal | None:
    """Characters that compilers disagree about, or that would hide a directive from us."""
    for number, line in enumerate(source.split("\n"), 1):
        if "\r" in line or "\0" in line:
            return Refusal(number, "no carriage returns or NUL characters within a line")
        if "??=" in line or "??/" in line:
            return Refusal(number, "no trigraphs")
        if re.search(r"\\\s+$", line):
            return Refusal(number, "no blanks behind a backslash at the end of a line")
    return None


def directive_rule(rest: str) -> str:
    """The rule that a directive breaks; `rest` is what follows its `#`. Empty if it breaks none."""
    allowed = ALLOWED.match(rest)
    if not allowed:
        word = rest.split()[0][:40] if rest.split() else ""
        return f"the directive #{word} is not allowed"
    if allowed[1] == "include" and not INCLUDE.match(rest):
        return (
            f"#include takes a relative name without '..' in angle brackets, got{rest[rest.find('include') + 7 :][:80]}"
        )
    return ""


def line_rule(line: str) -> str:
    """The rule that a logical line breaks; empty if it breaks none."""
    for start in STARTS.finditer(line):
        directive = DIRECTIVE.match(line, start.end())
        if directive and (rule := directive_rule(directive[1])):
            return rule
    for match in HAS_FILE.finditer(line):
        asked = match[1] == "include" and ASKS_FOR_HAS.search(line[: match.start()])
        if not asked and not HAS_ANGLE.match(line, match.start()):
            return f"{match[0]} takes a relative name without '..' in angle brackets"
    if PRAGMA.search(line) and (reads := PRAGMA_READS.search(line)):
        return f"the pragma {reads[0]} is not allowed"
    if ASSEMBLY_READS.search(line):
        return "assembly may not read files (.incbin, .include)"
    return ""


def screen(source: str) -> Refusal | None:
    """The first breach of the rules; None where a compiler may see the source. Lines end in `\\n`."""
    if refusal := characters_rule(source):
        return refusal
    for number, line in logical_lines(source):
        if rule := line_rule(line):
            return Refusal(number, rule)
    return None
