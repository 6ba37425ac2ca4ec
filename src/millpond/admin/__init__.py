"""The management API: what operators and monitoring see of the core, and the few things they change.

`views.py` reads the core, `changes.py` changes it, `metrics.py` is for Prometheus; `gate.py` lets in, `application.py`
holds the routes, `server.py` serves them. Paths and fields are those of RabbitMQ's management API, so that
its tools work here too. Nothing here knows a protocol.
"""
