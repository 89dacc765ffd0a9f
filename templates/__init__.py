"""Deployment templates. The guides beside this file say how a pipeline is started on each runner."""
