"""The engineer: a proposer that asks language models."""
