"""Metrics: functions from pictures and prompts to one number a sample, and their networks.

Imports `store` and what is below it. `base` has the `metric` decorator, `networks` the `network` decorator and the
loader; each other module holds the metrics of one kind with the network that they need.
"""
