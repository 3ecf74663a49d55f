"""Programs that ``bench/gpu.py`` runs: ``python -m gpu_parts.drivers.NAME --json FILE``.

Each writes its results to FILE and takes ``--dry-run``: tiny sizes, on the CPU.
"""
