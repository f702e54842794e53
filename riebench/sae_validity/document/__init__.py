"""The document about the ladder: its generated parts, conclusions in words, and figures."""
