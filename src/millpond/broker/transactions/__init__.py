"""Transactions of Kafka's producers: records in many partitions, and offsets of groups, that count together or not at
all."""
