"""The parts of ``bench/gpu.py``: what runs (registry), how (runner), and what is read from it.

``drivers`` holds the programs that run on the device, each in a process of its own.
"""
