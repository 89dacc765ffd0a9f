"""Parts of ``benchmarks/runners.py``."""
