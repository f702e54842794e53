"""Editing methods. Each is a function `edit(ctx, **params)`, registered by the decorator in `base`."""
