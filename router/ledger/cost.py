"""What requests cost: the price of the target that answered, times the tokens that were counted there."""

from __future__ import annotations

from collections.abc import Sequence

from router.config import Config
from router.ledger.receipts import CACHE_HIT, Receipt
from router.placement.targets import Price


class PriceList:
    """The prices of a configuration, in US dollars per million tokens.

    Args:
        config: `targets[].price` by target, `models[].price` for what the cluster serves itself.
    """

    def __init__(self, config: Config) -> None:
        self._targets = {target.id: Price(target.price.prompt, target.price.completion) for target in config.targets}
        self._models = {
            name: Price(model.price.prompt, model.price.completion) for model in config.models for name in model.names
        }
        self._dearest = _dearest([*self._targets.values(), *self._models.values()])
        self._dearest_outside = _dearest([self._targets[target.id] for target in config.targets if target.kind == "cloud"])

    def of(self, target: str, model: str) -> Price:
        """The price at a target (by its id), else of a model that the cluster serves."""
        return self._targets.get(target) or self._models.get(model) or Price()

    def most(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The most a request of this size may cost anywhere, in US dollars: what a budget sets aside for it."""
        return cost_usd(self._dearest, prompt_tokens, completion_tokens)

    def most_outside(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The most a request of this size is expected to cost outside the cluster, in US dollars."""
        return cost_usd(self._dearest_outside, prompt_tokens, completion_tokens)

    def cost(self, receipt: Receipt) -> float | None:
        """What a request cost in US dollars, nothing when the cache answered; None when an answer began and nobody counted its
        tokens."""
        if receipt.cache == CACHE_HIT:
            return 0.0
        began = [attempt for attempt in receipt.attempts if attempt.first_byte and 200 <= attempt.status < 300]
        if not began:
            return 0.0
        if receipt.prompt_tokens < 0:
            return None
        last = began[-1]
        return cost_usd(self.of(last.target, last.model), receipt.prompt_tokens, max(0, receipt.completion_tokens))


def _dearest(prices: Sequence[Price]) -> Price:
    return Price(max((p.prompt for p in prices), default=0.0), max((p.completion for p in prices), default=0.0))


def cost_usd(price: Price, prompt_tokens: int, completion_tokens: int) -> float:
    """Tokens at a price, in US dollars."""
    return (prompt_tokens * price.prompt + completion_tokens * price.completion) / 1e6
