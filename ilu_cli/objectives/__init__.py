"""Unlearning losses, one per file.

An objective is a function of the forget micro-batch (`ilu_cli.engine.view.View`) that returns one value per sequence,
[B]; its keyword-only parameters are its recipe keys. The decorator declares

- `needs`: the quantities it reads (`logps`, `nll`, `hidden`, `reference.logps`, `reference.hidden`, `reference.norm`);
- `per`: what the sum over all sequences is divided by, `sequence`, or `token` (scored tokens; for hidden states, all
  but the first position). The divisor is global: over micro-batches and processes.
"""
