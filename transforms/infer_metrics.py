"""What ``ContinuousInference`` tells Beam's metrics."""

from __future__ import annotations

from apache_beam.metrics import Metrics

from contbatch.transforms.batching import Reason
from contbatch.transforms.engine.dispatch import BatchFacts


class InferMetrics:
    """Beam metrics of a transform; what concerns a batch is told once, by one of its bundles."""

    def __init__(self, namespace: str) -> None:
        self.predicted = Metrics.counter(namespace, "predicted")
        self.shed = Metrics.counter(namespace, "shed")
        self.failed = Metrics.counter(namespace, "failed")
        self._sizes = Metrics.distribution(namespace, "batch_size")
        self._padding = Metrics.distribution(namespace, "padding")
        self._wait = Metrics.distribution(namespace, "queue_wait_ms")
        self._device = Metrics.distribution(namespace, "device_ms")
        self._version = Metrics.gauge(namespace, "model_version")
        self._reasons = {reason: Metrics.counter(namespace, f"released_{reason}") for reason in Reason}

    def batch(self, facts: BatchFacts) -> None:
        """Tell about a batch."""
        self._sizes.update(facts.size)
        self._padding.update(facts.padded - facts.size)
        self._wait.update(round(facts.wait * 1e3))
        self._device.update(round(facts.seconds * 1e3))
        self._reasons[facts.reason].inc()
        if facts.number:
            self._version.set(facts.number)
