"""Talks to the router: the public port as any OpenAI client does, and the admin listener."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

_HEADERS = ("x-tidegate-model", "x-tidegate-target", "x-tidegate-zone", "x-tidegate-reason", "x-request-id")
# A proxy from the environment has no business between this machine and itself.
_CLIENT = httpx.Client(trust_env=False)


class RouterError(Exception):
    """The router could not be reached, or refused; the text says which, and what to do."""


@dataclass(frozen=True)
class Endpoint:
    """Where the router listens on this machine, and the plain key to call it with."""

    port: int
    admin_port: int
    key: str = ""

    @property
    def public(self) -> str:
        """Base URL of the public listener."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> str:
        """Base URL of the admin listener."""
        return f"http://127.0.0.1:{self.admin_port}"


@dataclass(frozen=True)
class Question:
    """One chat message and how it is to be routed. `residency` may hold several tags, separated by commas."""

    message: str
    model: str = "auto"
    residency: str = ""
    max_tokens: int = 256

    def body(self, stream: bool = False) -> dict[str, Any]:
        """The body of the chat request."""
        messages = [{"role": "user", "content": self.message}]
        body: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": 0}
        body["max_tokens"] = self.max_tokens
        return {**body, "stream": True} if stream else body

    def headers(self, key: str) -> dict[str, str]:
        """Its headers."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return {**headers, "x-tidegate-residency": self.residency} if self.residency else headers


@dataclass(frozen=True)
class Answer:
    """What came back: the text (empty for a stream, which is handed out piece by piece) and how it was routed."""

    text: str
    routing: dict[str, str]


def is_ready(endpoint: Endpoint) -> bool:
    """Whether `/readyz` on the public port answers 200."""
    try:
        return _CLIENT.get(f"{endpoint.public}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def chat(endpoint: Endpoint, question: Question) -> Answer:
    """Ask and wait for the whole answer.

    Raises:
        RouterError: unreachable, or an error came back.
    """
    response = _post(f"{endpoint.public}/v1/chat/completions", question.body(), question.headers(endpoint.key))
    data = _json(response)
    try:
        text = data["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise RouterError(f"the router's answer is not a chat completion: {response.text[:200]}") from None
    return Answer(str(text).strip(), _routing(response))


def stream_chat(endpoint: Endpoint, question: Question) -> Iterator[str | Answer]:
    """Ask and yield the answer's pieces as they come; the last item is an `Answer` with the routing.

    Raises:
        RouterError: unreachable, an error came back, or the stream broke off.
    """
    url, headers = f"{endpoint.public}/v1/chat/completions", question.headers(endpoint.key)
    try:
        with _CLIENT.stream("POST", url, json=question.body(True), headers=headers, timeout=300) as response:
            if response.status_code != 200:
                response.read()
                raise RouterError(_explain(response))
            for line in response.iter_lines():
                if not line.startswith("data:") or line == "data: [DONE]":
                    continue
                event = json.loads(line[5:])
                if "error" in event:
                    raise RouterError(f"the stream broke off: {event['error'].get('message', event['error'])}")
                for choice in event.get("choices", []):
                    if piece := choice.get("delta", {}).get("content"):
                        yield piece
            yield Answer("", _routing(response))
    except (httpx.HTTPError, ValueError) as error:
        raise _unreachable(url, error) from None


def explain(endpoint: Endpoint, question: Question) -> dict[str, Any]:
    """The decision the router would take; nothing is run.

    Raises:
        RouterError: unreachable, or an error came back.
    """
    return _json(_post(f"{endpoint.admin}/tidegate/v1/explain", question.body(), question.headers(endpoint.key)))


def cluster(endpoint: Endpoint) -> dict[str, Any]:
    """What the router knows of the cluster.

    Raises:
        RouterError: unreachable, or an error came back.
    """
    url = f"{endpoint.admin}/tidegate/v1/cluster"
    try:
        response = _CLIENT.get(url, timeout=10)
    except httpx.HTTPError as error:
        raise _unreachable(url, error) from None
    if response.status_code != 200:
        raise RouterError(_explain(response))
    return _json(response)


def _post(url: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    try:
        response = _CLIENT.post(url, json=body, headers=headers, timeout=300)
    except httpx.HTTPError as error:
        raise _unreachable(url, error) from None
    # A refusal from `explain` is an answer: it carries the decision that refuses.
    if response.status_code != 200 and "candidates" not in response.text:
        raise RouterError(_explain(response))
    return response


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        data = response.json()
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise RouterError(f"{response.request.url} answered something that is not a JSON object")
    return data


def _routing(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in _HEADERS if name in response.headers}


def _explain(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        message = f"{error.get('code') or error.get('type')}: {error['message']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        message = response.text[:300]
    wait = f" (retry after {response.headers['retry-after']} s)" if "retry-after" in response.headers else ""
    return f"{response.request.url.path} answered {response.status_code}: {message}{wait}"


def _unreachable(url: str, error: Exception) -> RouterError:
    return RouterError(f"{url} does not answer ({error}). `tidegate status` says what runs; `tidegate up` starts it")
