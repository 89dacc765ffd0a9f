"""The parts of ``benchmarks.inference``, each a module with functions that fill a report."""
