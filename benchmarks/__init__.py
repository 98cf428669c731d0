"""Benchmarks: ``python -m benchmarks`` measures acomfy against the least Python that does the same, and against others.

What is compared runs in one run, in turns, against the same load server, so that ratios hold where times do not.
"""
