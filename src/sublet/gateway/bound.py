"""How many tokens a prompt can have, without asking anybody.

No tokenizer that replicas use makes more tokens than a text has bytes, but a chat's template
adds its own. How many it adds is learnt from what the model counts: once from a count that is
asked for, then from every answer. A bound only decides how much money is set aside.
"""

from dataclasses import dataclass, field
from typing import Final

from sublet.gateway.ask import Ask
from sublet.gateway.grant import Need
from sublet.gateway.table import Offer
from sublet.gateway.tariff import Tariff

_EACH_MESSAGE: Final = 16  # tokens that a template puts around one
_SPARE: Final = 32


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

    def learn(self, ask: Ask, prompt_tokens: int) -> None:
        """Note how many tokens a prompt had."""
        if ask.counted or not ask.generates:
            return
        over = prompt_tokens - ask.prompt_bytes - _EACH_MESSAGE * ask.messages + _SPARE
        known = self._template.get(ask.model)
        if known is None or over > known:
            self._template[ask.model] = max(over, _SPARE)
