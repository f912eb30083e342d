"""Searches by other programs beside ours, all fed by one scripted engineer: `python -m bench.search_peers`."""
