"""Recipes: how each table and figure of the paper is measured and drawn."""
