"""The runners that the pipelines run on: Beam's own in this process, and Prism, whose workers are threads of it."""

from __future__ import annotations

from collections.abc import Callable

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from tests.runners.binaries import prism_location

Make = Callable[[], beam.Pipeline]
"""Makes an empty pipeline."""


def fn_api() -> beam.Pipeline:
    """Return a pipeline on Beam's FnApiRunner."""
    return beam.Pipeline(FnApiRunner())


def prism() -> beam.Pipeline:
    """Return a pipeline on Prism, with LOOPBACK workers. Its SDF splits are off: they lose nothing here, but disturb.

    Raises:
        FileNotFoundError: there is no Prism.
    """
    location = prism_location()
    if location is None:
        raise FileNotFoundError("no Prism: put its binary on the PATH, or name it in CONTBATCH_PRISM")
    experiments = ["disable_prism_server_singleton", "prism_disable_sdf_split"]
    options = PipelineOptions([], runner="PrismRunner", prism_location=location, experiments=experiments)
    return beam.Pipeline(options=options)
