"""This process and those that help it.

`collector` is about its garbage, `helpers` divides work among processes.
"""
