"""Side-by-side measurements of Millpond against the brokers it takes over from: `python -m bench`."""
