"""Judges kernels: builds, verifies and times candidates on the far side of a process wall."""
