"""How each provider is spoken to: pure functions from OpenAI's chat request to the provider's, and from its answer back."""
