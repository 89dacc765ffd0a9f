"""Lets ``--setup_file ./setup.py`` and old tools build the package; everything is in pyproject.toml."""

from setuptools import setup

setup()
