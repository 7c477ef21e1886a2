"""How many tokens a prompt can have, without asking anybody.

No tokenizer that replicas use makes more tokens than a text has bytes, but a chat's template
adds its own. How many it adds is learnt from what the model counts: once from a count that is
asked for, then from every answer. A bound only decides how much money is set aside.
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from sublet.gateway.ask import Ask
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import Need
from sublet.gateway.table import Offer
from sublet.gateway.tariff import Tariff
from sublet.models.deployment import Feature

_EACH_MESSAGE: Final = 16  # tokens that a template puts around one
_SPARE: Final = 32
# Of who does not count for us beforehand: what a supplier's template adds, and one image is.
_OUTSIDE: Final = 64
_OUTSIDE_TOOLS: Final = 512
_EACH_IMAGE: Final = 8192


@dataclass(slots=True)
class Bounds:
    _template: dict[str, int] = field(default_factory=dict)  # by model: tokens of the template

    def need(self, ask: Ask, offer: Offer, tariff: Tariff) -> Need | None:
        """Return what `ask` can use at most; None when its prompt must be counted to know."""
        if not ask.generates:
            # Each input is within the context, or refused: how many there are is not limited.
            return Need(
                prompt_tokens=ask.prompt_bytes + _EACH_MESSAGE * ask.messages,
                counted=False,
                max_tokens=0,
                context_left=0,
                tariff=tariff,
            )
        template = self._template.get(ask.model)
        if template is None or ask.counted:
            return None
        prompt = ask.prompt_bytes + _EACH_MESSAGE * ask.messages + template
        left = offer.deployment.context_tokens - prompt
        if left <= (ask.max_tokens or 0):
            return None
        return Need(
            prompt_tokens=prompt,
            counted=False,
            max_tokens=ask.max_tokens,
            context_left=offer.deployment.context_tokens - 1,
            tariff=tariff,
        )

    def counted(self, ask: Ask, offer: Offer, tariff: Tariff, prompt_tokens: int) -> Need:
        """Return what `ask` can use, once its prompt was counted; what was counted is learnt.

        Raises:
            Failure: the prompt alone fills the context.
        """
        self.learn(ask, prompt_tokens)
        context = offer.deployment.context_tokens
        if ask.generates and prompt_tokens >= context:
            raise Failure(
                Kind.TOO_LONG,
                f"the input has {prompt_tokens} tokens and the context of model {ask.model!r}"
                f" holds {context}, input and output together",
                param="messages" if "messages" in ask.payload else "prompt",
            )
        return Need(
            prompt_tokens=prompt_tokens,
            counted=True,
            max_tokens=ask.max_tokens,
            context_left=context - prompt_tokens if ask.generates else 0,
            tariff=tariff,
        )

    def need_outside(self, ask: Ask, offer: Offer, tariff: Tariff) -> Need:
        """Return what `ask` can use at most where nobody can count its prompt: it is to be bought."""
        prompt = bound_outside(ask)
        context = offer.deployment.context_tokens
        return Need(
            prompt_tokens=min(prompt, context),
            counted=True,  # no better number is to be had
            max_tokens=ask.max_tokens,
            context_left=context - 1,
            tariff=tariff,
        )

    def learn(self, ask: Ask, prompt_tokens: int) -> None:
        """Note how many tokens a prompt had."""
        if ask.counted or not ask.generates:
            return
        over = prompt_tokens - ask.prompt_bytes - _EACH_MESSAGE * ask.messages + _SPARE
        known = self._template.get(ask.model)
        if known is None or over > known:
            self._template[ask.model] = max(over, _SPARE)


def bound_outside(ask: Ask) -> int:
    """Return how many tokens a prompt has at most to another model's tokenizer."""
    images, text = 0, ask.prompt_bytes
    if Feature.IMAGES in ask.features:
        messages = ask.payload["messages"]
        assert isinstance(messages, list)
        for message in messages:
            content = message.get("content")
            for part in content if isinstance(content, list) else ():
                if part["type"] == "image_url":
                    images += 1
                    text -= len(part["image_url"]["url"])
    tools = len(msgspec.json.encode(ask.payload["tools"])) if "tools" in ask.payload else 0
    if tools:
        tools += _OUTSIDE_TOOLS
    return text + tools + images * _EACH_IMAGE + _EACH_MESSAGE * ask.messages + _OUTSIDE
