"""A program in a model's place: reads a prompt and prints the reply that is on record for its task.

`NAME.md` answers the first prompt for the kernel NAME, `NAME.repair.md` a prompt that asks to mend it.
"""

import re
import sys
from pathlib import Path

prompt = sys.stdin.read()
found = re.search(r'extern "C" void (\w+)\(', prompt)
assert found is not None, "a prompt without a prototype"
suffix = ".repair.md" if "mend the parent" in prompt else ".md"
print((Path(__file__).parent / "modules" / f"{found[1]}{suffix}").read_text())
