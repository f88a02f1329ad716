"""Penalties over environments, one per file.

A penalty is a function of `values` [N], the mean of its statistic (`needs`, per scored token) in each of the N
environments. The means are global; the engine takes the penalty's derivative by each value and applies it to that
value's gradient, which is exact for any number of micro-batches and processes.
"""
