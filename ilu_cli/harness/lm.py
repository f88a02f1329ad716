"""The backend `ilu` of lm-eval: log-likelihoods and generation by our `Scorer`.

Conventions (how texts are parted into tokens, what stands before an empty context, windows over long texts, stop
strings) are those of lm-eval's HFLM, so that scores are the same. Where HFLM would be wrong they are not: a
continuation of which a token reaches into the context is scored whole, EOS that the tokenizer appends stands nowhere,
what is cut keeps BOS, and greedy decoding is that whatever generation_config.json says.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from ilu_cli.data.chat import Chat, check_template, render
from ilu_cli.data.special import first_token
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tree import Request
from ilu_cli.errors import UsageError

Tokens = tuple[Any, list[int], list[int]]  # what it came from, context, continuation
# Sampling keys that mean nothing to greedy decoding; any other key is refused.
GREEDY = {"do_sample", "temperature", "top_p", "top_k"}


@register_model("ilu")
class IluLM(TemplateLM):
    """`--model ilu --model_args pretrained=FOLDER,precision=fp32|bf16`, or around a `Scorer`.

    `truncate` cuts the beginning of what does not fit into the model's context, as HFLM does, with a warning; without
    it that is an error. BOS stays. lm-eval's `batch_size` has no use here: batches are filled up to a number of tokens.
    With lm-eval's `--apply_chat_template`, `chat_date=2024-07-26` is the day that the template names, `chat_system` its
    system prompt where lm-eval gives none.
    """

    def __init__(
        self,
        pretrained: str = "",
        precision: Literal["fp32", "bf16"] = "fp32",
        scorer: Scorer | None = None,
        truncate: bool = True,
        device: str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        chat_system: str | None = None,
        chat_date: str | None = None,
    ) -> None:
        super().__init__()
        self.template = Chat(chat_system, str(chat_date) if chat_date else None)
        self.scorer = scorer or _scorer_of(pretrained, precision)
        self.tokenizer, self.truncate = self.scorer.tokenizer, truncate
        self._device = self.scorer.backend.device
        if device is not None and device.partition(":")[0] != self._device.type:
            raise UsageError(f"device={device}: the backend `ilu` runs on {self._device}, which accelerate chose")

    @property
    def eot_token_id(self) -> int | None:
        """The token before a text without context; None if the tokenizer has none."""
        token: int | None = self.scorer.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        return first_token(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """The name by which lm-eval keeps what it cached."""
        return str(self.scorer.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as ilu writes it; see `ilu_cli.data.chat`."""
        check_template(self.tokenizer, self.template)
        return render(
            self.tokenizer,
            chat_history,
            self.template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Token ids of a text, with the tokenizer's own special tokens unless told otherwise."""
        return self.scorer.encode(string, special=add_special_tokens is not False)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(Σ log p of the continuation in nats, whether it is the greedy one) for each (context, continuation)."""
        pairs = [self.scorer.pair(*r.args) for r in requests]
        return self._loglikelihood_tokens(
            [(r.args, list(p.ids[: p.start]), list(p.ids[p.start :])) for r, p in zip(requests, pairs)]
        )

    def _loglikelihood_tokens(self, requests: list[Tokens], **kwargs: object) -> list[tuple[float, bool]]:
        room, made, cut = self.scorer.context_length + 1, [], 0  # the last token is not read
        for what, context, continuation in requests:
            ids = context + continuation
            if len(ids) > room:
                if not self.truncate:
                    self.scorer.check_length(len(ids), str(what[0]))
                cut += 1
            ids = self.scorer.cut(ids, room)
            made.append(Request(tuple(ids), max(1, len(ids) - len(continuation))))
        if cut:
            logging.getLogger(__name__).warning("%d requests lost their beginning: they exceed %d tokens", cut, room)
        return self.scorer.score(made)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Windows without overlap of what is scored, each as long as the context allows."""
        windows, owner = [], []
        for i, request in enumerate(requests):
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.scorer.context_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, pairs):
                windows.append((request.args, context, continuation))
                owner.append(i)
        total = [0.0] * len(requests)
        for i, (logp, _) in zip(owner, self._loglikelihood_tokens(windows)):
            total[i] += logp
        return total

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy decoding up to the first stop string.

        Raises:
            UsageError: if a task asks for sampling, or for a key that is not known here.
        """
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(i)
        found = [""] * len(requests)
        for (length, stop), members in groups.items():
            prompts = [requests[i].args[0] for i in members]
            if not self.truncate:
                for prompt in prompts:
                    self.scorer.check_length(len(self.scorer.prompt(prompt)) + length, prompt)
            for i, text in zip(members, self.scorer.complete(prompts, length, stop)):
                found[i] = postprocess_generated_text(text, list(stop), None)
        return found

    def _settings(self, given: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
        """The most new tokens, and the stop strings."""
        kwargs = normalize_gen_kwargs(given, 256)
        end = "" if self.eot_token_id is None else self.tokenizer.decode(self.eot_token_id)
        stop = handle_stop_sequences(kwargs.pop("until", None), end)
        length = kwargs.pop("max_gen_toks")
        if kwargs.get("do_sample") or kwargs.get("temperature"):
            raise UsageError(f"the backend `ilu` decodes greedily; this task samples: {given}")
        if unknown := set(kwargs) - GREEDY:
            raise UsageError(f"the backend `ilu` does not know the generation keys {', '.join(sorted(unknown))}")
        return length, tuple(s for s in stop if s)


def _scorer_of(pretrained: str, precision: str) -> Scorer:
    from ilu_cli.engine.accel import backend
    from ilu_cli.engine.parity import check
    from ilu_cli.models.load import identity_of, load_model, load_tokenizer
    from ilu_cli.models.parts import parts_of
    from ilu_cli.models.subject import find_model

    if not pretrained or precision not in ("fp32", "bf16"):
        raise UsageError("the backend `ilu` needs pretrained=MODEL, and precision is fp32 or bf16")
    subject = find_model(pretrained)
    model = load_model(subject, backend().device)
    scorer = Scorer(model, parts_of(model, identity_of(subject)), load_tokenizer(subject.folder), backend(), precision)
    check(scorer, logging.getLogger(__name__).warning)
    return scorer
