"""The document about the ladder: generated parts, conclusions, and figures."""
