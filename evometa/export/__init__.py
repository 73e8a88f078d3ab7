"""Found rules as files that stand alone: `evometa export RUN --as optax`. Reads archives only; see `rule.py`."""
