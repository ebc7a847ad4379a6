"""The peer of benchmarks/synthesize.py: a bare loop over OpenAI's client, in threads. Needs `openai`."""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

PROMPT = (
    "根据材料写一个问题。" * 60
    + "\n<passage>\n长江全长六千三百余公里，是亚洲第一长河。第{}次测量的结果与此相同。\n</passage>"
)


def main() -> None:
    """Ask for all, and print the seconds that it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    given = parser.parse_args()
    client = OpenAI(base_url=given.url, api_key="none")

    def ask(number: int) -> str | None:
        chat = [{"role": "user", "content": PROMPT.format(number)}]
        answer = client.chat.completions.create(model="served", messages=chat, temperature=0.7, max_tokens=256)
        return answer.choices[0].message.content

    started = time.monotonic()
    with ThreadPoolExecutor(given.concurrency) as threads:
        answers = list(threads.map(ask, range(given.requests)))
    print(time.monotonic() - started)
    assert all(answer and "query" in answer for answer in answers)


if __name__ == "__main__":
    main()
