"""A process of its own that fills an archive: writer.py ARCHIVE NAME COUNT. Prints what is committed, line by line."""

import sys
from itertools import count, islice

from archive import Archive, Run
from sandbox.contract import Candidate, Cheated, Judgement

path, name, wanted = sys.argv[1:]
print("started", flush=True)
sys.stdin.readline()
with Archive.open(path) as archive:
    run = Run(id=f"run-{name}", task="toy", task_version="v1", target="cpu", device="box", rng_seed=1)
    archive.start_run(run)
    for number in islice(count(), int(wanted)):
        candidate = Candidate(task="toy", target="cpu", source=f"{name} {number}", operator="seed", proposer="seed")
        shared = candidate.model_copy(update={"source": f"shared {number}"})
        archive.add(candidate)
        archive.add(shared)
        for each in (candidate, shared):
            verdict = Cheated(rule="r", evidence="e" * 5000)
            archive.record(
                Judgement(
                    candidate=each.id,
                    task="toy",
                    task_version="v1",
                    target="cpu",
                    device="box",
                    verdict=verdict,
                    seconds=1,
                    judged_at="2026-01-01T00:00:00Z",
                ),
                run.id,
            )
        print(candidate.id, flush=True)
