"""A queue over a topic (being written)."""

from millpond.broker.shares.delivery_state import DeliveryState


class ShareQueue:
    consumers: list[object]
    def set_up(self, state: DeliveryState) -> None: ...
