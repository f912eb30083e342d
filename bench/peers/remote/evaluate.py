"""What OpenEvolve and ShinkaEvolve call to judge a program: sends its text to the bench and hands back the verdict.

Runs under their Python, so it imports nothing of ours. OpenEvolve imports `evaluate`, ShinkaEvolve starts the file.
"""

import argparse
import json
import os
import urllib.request
from pathlib import Path

ADDRESS = "SEARCH_PEERS_EVALUATE"


def judged(program: str) -> dict:
    body = json.dumps({"source": Path(program).read_text()}).encode()
    request = urllib.request.Request(os.environ[ADDRESS], body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


def evaluate(program_path: str) -> dict:
    """A failed program has the score 0."""
    return {"combined_score": judged(program_path)["speedup"] or 0.0}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--program_path", required=True)
    parser.add_argument("--results_dir", required=True)
    given = parser.parse_args()
    outcome = judged(given.program_path)
    passed = outcome["speedup"] is not None
    folder = Path(given.results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"combined_score": outcome["speedup"] or 0.0, "public": {}, "private": {}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "correct.json").write_text(json.dumps({"correct": passed, "error": "" if passed else outcome["status"]}))


if __name__ == "__main__":
    main()
