"""The parts of ``benchmarks.learning``, each a module with functions that fill a report."""
