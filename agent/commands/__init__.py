"""The commands of the command line, one file for each thing they are about. `agent.cli` puts them together."""
