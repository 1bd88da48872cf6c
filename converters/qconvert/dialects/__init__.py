"""How each ecosystem names and arranges the arrays of a tensor."""
