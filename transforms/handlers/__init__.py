"""Beam model handlers for accelerators. Each module needs its framework; this one imports none."""
