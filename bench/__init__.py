"""Benchmarks, run from a checkout: ``python -m lhkernels bench KIND``, a module a kind."""
