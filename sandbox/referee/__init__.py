"""The trusted side's torch process: draws inputs, knows the expected outputs, compares, times the baselines.

It never loads a candidate. The judge talks to it as to a worker; see referee/__main__.py for the operations.
"""
