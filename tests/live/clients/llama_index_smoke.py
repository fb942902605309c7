"""LlamaIndex over the router: complete, chat and stream."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model="auto",
    api_base=os.environ["TIDEGATE_URL"],
    api_key=os.environ["TIDEGATE_KEY"],
    is_chat_model=True,
    context_window=2048,
    max_tokens=5,
    temperature=0,
    max_retries=0,
)
turns = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello")]
text = llm.chat(turns).message.content
assert text
assert [part.message.content for part in llm.stream_chat(turns)][-1] == text
assert llm.complete("Hello").text
completions = llm.model_copy(update={"is_chat_model": False})
assert completions.complete("Once").text
assert [part.text for part in completions.stream_complete("Once")]
print("llama-index ok")
