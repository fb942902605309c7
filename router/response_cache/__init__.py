"""The response cache: answers kept in a router's own memory, and given again to the same question in the same scope.

Off unless a key asks for it. `ask` says which requests are for it and what makes two of them the same, `answer` copies an answer
on its way and says whether it is whole, `book` keeps them within bounds, `turn` is one request's way through all that. Whether an
answer *may* be kept or given is said by `router.residency.cache_gate` alone.
"""
