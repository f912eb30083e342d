"""Decides what to try next, and never runs a kernel."""
