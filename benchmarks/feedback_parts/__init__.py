"""The parts of ``benchmarks.feedback``, each a module with functions that fill a report."""
