"""Penalties over environments, one per file.

A penalty is a function of `Environments` (`ilu_cli.engine.environments`). It returns its value without λ, and has put
λ times its gradient into the parameters by one of the methods there: `of_means` for a function of each environment's
mean of a statistic, or `gradients`, `hessian_times` and `add` for what depends on gradients. Both are exact for any
number of micro-batches and processes; Hessian products too, by differentiating twice.

The decorator declares `least`, the number of environments that it needs to mean anything.
"""
