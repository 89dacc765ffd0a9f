"""An inference engine inside the worker process: one model and one queue per device."""
