"""Millpond's Kafka listener beside Apache Kafka, measured with the same client: librdkafka, by confluent-kafka."""
