"""A small stream of requests and feedback about three users and four items."""

from __future__ import annotations

import random
from typing import Any

from contbatch.transforms import AvroCodec, BatchPolicy, Event, Kind, OnlineUpdate, PredictThenLearn, SparseLearner
from contbatch.transforms.events import MICROS


class Small:
    """A job small enough to run many times: its codecs, its events, its transform."""

    requests = AvroCodec(
        {
            "type": "record",
            "name": "Request",
            "fields": [{"name": name, "type": "string"} for name in ("request_id", "user", "item")],
        }
    )
    feedback = AvroCodec(
        {
            "type": "record",
            "name": "Feedback",
            "fields": [{"name": "request_id", "type": "string"}, {"name": "label", "type": "float"}],
        }
    )

    def request(self, row: int, seconds: float, model: str = "") -> Event:
        record = {"request_id": f"{model}{row}", "user": f"u{row % 3}", "item": f"i{row % 4}"}
        return Event(round(seconds * MICROS), Kind.REQUEST, row, self.requests.encode(record), model)

    def label(self, row: int, seconds: float, model: str = "", value: float | None = None) -> Event:
        liked = float(row % 3 == row % 4) if value is None else value
        payload = self.feedback.encode({"request_id": f"{model}{row}", "label": liked})
        return Event(round(seconds * MICROS), Kind.FEEDBACK, row, payload, model)

    def events(self, count: int = 60, seed: int = 0, model: str = "") -> list[Event]:
        """Requests at irregular times, each followed by its feedback 0.3 s later."""
        rng, seconds, events = random.Random(seed), 0.0, []
        for row in range(count):
            seconds += rng.choice([0.0, 0.1, 0.4, 1.5])
            events += [self.request(row, seconds, model), self.label(row, seconds + 0.3, model)]
        return events

    def transform(self, store: Any, **settings: Any) -> PredictThenLearn:
        return PredictThenLearn(**self._arguments(store, settings))

    def trainer(self, store: Any, **settings: Any) -> OnlineUpdate:
        return OnlineUpdate(**self._arguments(store, settings))

    def _arguments(self, store: Any, settings: dict[str, Any]) -> dict[str, Any]:
        return {
            "learner": SparseLearner(("user", "item"), interactions=((("user",), ("item",)),), bits=6, factors=2),
            "policy": BatchPolicy(max_size=4, max_delay=0.5),
            "store": str(store),
            "requests": self.requests,
            "feedback": self.feedback,
            "ttl": 60.0,
            "publish_every": 20,
            **settings,
        }
