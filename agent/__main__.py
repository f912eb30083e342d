"""`python -m agent` is the `warpsmith` command."""

from agent.cli import main

main()
