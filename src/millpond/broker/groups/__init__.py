"""Consumer groups: who reads what of which topics, and how far they have come."""
