"""The files weights are kept in."""
