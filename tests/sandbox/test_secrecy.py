"""Who runs code of others does not hand it the user's keys."""

import pytest

from sandbox.local import environment
from sandbox.secrecy import without_keys
from tests.agent.test_graph import CPU

KEYS = ("OPENAI_API_KEY", "ROUTER_TOKEN", "my_secret", "PGPASSWORD", "GOOGLE_APPLICATION_CREDENTIALS")


def test_keys_are_left_out_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*KEYS, "OMP_PLACES"):
        monkeypatch.setenv(name, "cores")
    found = without_keys()
    assert found["OMP_PLACES"] == "cores"
    assert not found.keys() & set(KEYS)


def test_worker_gets_none_of_the_users_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAINLY_NAMED", "sk-test-0123456789abcdef")
    assert "sk-test-0123456789abcdef" not in environment(CPU, "/scratch").values()
