"""Metrics, functions from samples to one number per sample, and their networks.

A sample is an edited picture with the pictures, mask and prompts that it is compared with.
Imports `store` and what is below it. `base` has the `metric` decorator, `networks` the `network` decorator and the
loader; each other module holds the metrics of one kind with the network that they need.
"""
