"""Ask the base model and an adapter the same question with OpenAI's own SDK, streamed.

    LORIKEET_API_KEY=… python examples/chat_openai.py [MODEL …]

`make run` prints the key; LORIKEET_BASE_URL is where Lorikeet listens, by default http://127.0.0.1:8000/api/v1.
"""

import os
import sys

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("LORIKEET_BASE_URL", "http://127.0.0.1:8000/api/v1"), api_key=os.environ["LORIKEET_API_KEY"])
for model in sys.argv[1:] or ["smollm2-135m", "demo/pirate"]:
    print(f"{model}: ", end="")
    question = {"role": "user", "content": "What is the capital of France?"}
    for chunk in client.chat.completions.create(model=model, messages=[question], temperature=0, max_tokens=64, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
