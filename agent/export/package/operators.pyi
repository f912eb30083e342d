from typing import Any

NAMES: tuple[str, ...]
NAMESPACE: str

def __getattr__(name: str) -> Any: ...
