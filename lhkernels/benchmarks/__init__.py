"""Benchmarks that run from the command line and under pytest-benchmark in bench/."""
