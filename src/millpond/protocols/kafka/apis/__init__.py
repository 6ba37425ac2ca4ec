"""One file for each of Kafka's APIs, or for those that share all but their names."""
