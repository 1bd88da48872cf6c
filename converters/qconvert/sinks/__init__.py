"""Where a conversion writes: one interface over the container writers."""

from qconvert.sinks.sink import Sink, open_sink

__all__ = ["Sink", "open_sink"]
