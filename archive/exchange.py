"""The lines by which archives meet: JSON lines from a header to a trailer with counts and a checksum.

    {"schema":"0004","warpsmith_archive":3}
    {"created_at":…,"id":…,"kind":"candidate","record":{…}}        in order of time, then id
    {"id":…,"kind":"judgement","record":{…}}
    {"kind":"run","record":{…},"updated_at":…}
    {"at":…,"judgement":…,"kind":"evaluation","run":…}
    {"id":…,"kind":"exchange","record":{…}}
    {"id":…,"kind":"ask","record":{…}}
    {"counts":{…},"kind":"end","sha256":…}                         over every byte before this line

Not covered: files (export, intake) and how lines enter an archive (merge).
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from archive.models import SCHEMA
from archive.records import Ask, Exchange, Run, Time, canonical, content_id, normal_time
from sandbox.contract import Candidate, Judgement, Record

FORMAT = 3
"""Raised when a program that knows only the older format could not read what this one writes."""


class Header(Record):
    warpsmith_archive: int = FORMAT
    schema_: str = Field(default=SCHEMA, serialization_alias="schema")


def _kernel(candidate: Candidate) -> Candidate:
    if candidate.form != "kernel":
        raise ValueError(f"a candidate of the form {candidate.form!r}; only kernels are archived")
    return candidate


class CandidateLine(Record):
    kind: Literal["candidate"] = "candidate"
    id: str
    created_at: Time
    record: Annotated[Candidate, AfterValidator(_kernel)]

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.id

    @model_validator(mode="after")
    def _hash_fits(self) -> Self:
        _match(self.id, self.record.id)
        return self


class JudgementLine(Record):
    """`record` stays as it was written, so that a judgement keeps its id when a later program adds fields."""

    kind: Literal["judgement"] = "judgement"
    id: str
    record: dict[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.id

    @cached_property
    def judgement(self) -> Judgement:
        return Judgement.model_validate(self.record)

    @cached_property
    def text(self) -> str:
        return canonical(self.record)

    @model_validator(mode="after")
    def _hash_fits(self) -> Self:
        normal_time(self.judgement.judged_at)
        _match(self.id, content_id(self.text))
        return self


class RunLine(Record):
    kind: Literal["run"] = "run"
    updated_at: Time
    record: Run

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.record.id


class EvaluationLine(Record):
    kind: Literal["evaluation"] = "evaluation"
    run: str
    judgement: str
    at: Time

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.run, self.judgement


class ExchangeLine(Record):
    kind: Literal["exchange"] = "exchange"
    id: str
    record: Exchange

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.id

    @model_validator(mode="after")
    def _hash_fits(self) -> Self:
        _match(self.id, self.record.id)
        return self


class AskLine(Record):
    kind: Literal["ask"] = "ask"
    id: str
    record: Ask

    @property
    def key(self) -> tuple[str, ...]:
        return self.kind, self.id

    @model_validator(mode="after")
    def _hash_fits(self) -> Self:
        _match(self.id, self.record.id)
        return self


class EndLine(Record):
    kind: Literal["end"] = "end"
    counts: dict[str, int]
    sha256: str


Line = CandidateLine | JudgementLine | RunLine | EvaluationLine | ExchangeLine | AskLine
ANY_LINE: TypeAdapter[Line | EndLine] = TypeAdapter(Annotated[Line | EndLine, Field(discriminator="kind")])


def written(line: Record) -> bytes:
    """A line as it stands in a file."""
    return (canonical(line.model_dump(mode="json", by_alias=True)) + "\n").encode()


def _match(given: str, content: str) -> None:
    if given != content:
        raise ValueError(f"id {given} is not the hash of the content, which is {content}")
