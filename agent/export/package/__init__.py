"""The files that every package carries as they are here; this one is written anew for each.

They need PyTorch and the standard library only, Python 3.10 and later, and import each other relatively.
"""
