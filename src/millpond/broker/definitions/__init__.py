"""Definitions: everything but messages as one JSON document, in RabbitMQ's format.

`exports.py` makes one of a broker, `imports.py` brings one into a broker; `document.py` reads what may be in it.
"""
