"""A subject's model where the launch wants it: whole on the device of each process, or spread over all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from ilu_cli import trust
from ilu_cli.engine.accel import Backend
from ilu_cli.errors import IluError
from ilu_cli.models.by_weight import reader_of
from ilu_cli.models.code import failed
from ilu_cli.models.heap import collect_as_usual
from ilu_cli.models.load import FAILURES, load_model, made_ready
from ilu_cli.models.quiet import quiet_transformers
from ilu_cli.models.subject import Subject
from ilu_cli.runs.files import read_json


def load(
    subject: Subject, b: Backend, depth: int | None = None, narrow: Callable[[Any], None] = lambda model: None
) -> Any:
    """Load a model as the launch asks; `depth` as for `load_model`.

    `narrow` puts weights of a model that is to be spread into fewer bits, before it is.

    To be spread, it is read by the first process alone, into main memory, and handed out a layer at a time; a weight at
    a time, where its files have the weights as it does.

    Raises:
        UnavailableError: if the first process cannot load it; on all processes.
    """
    if b.mesh is None:
        return load_model(subject, b.device, depth)
    collect_as_usual()
    made: Any = None
    read = None
    try:
        made = frame(subject)
        if b.main and (read := reader_of(subject, made)) is None:
            made = load_model(subject)
        narrow(made)
    except IluError as error:
        made = error
    errors = [e for e in b.gather([made if isinstance(made, IluError) else None]) if e is not None]
    if errors:
        raise errors[0]
    return b.spread(made, read)


def frame(subject: Subject) -> Any:
    """The model of a subject with its buffers but without its weights, which another process has.

    Raises:
        UnavailableError: if there is none.
    """
    quiet_transformers()
    folder = subject.root
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust.remote())
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust.remote())
        model.tie_weights()  # which making parameters anew has undone
        if (said := folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_dict(read_json(said))
    except FAILURES as error:
        raise failed(folder, "is not a causal language model", error) from error
    return made_ready(model)
