"""A queue over a topic (being written)."""
from millpond.broker.shares.delivery_state import DeliveryState
class ShareQueue:
    def set_up(self, state: DeliveryState) -> None: ...
