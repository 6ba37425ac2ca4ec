"""Share groups: several readers work off one stream together. See `delivery_state.py`."""
