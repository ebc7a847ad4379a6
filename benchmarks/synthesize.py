"""Requests per second of the client of `conan synthesize` and of a bare loop over OpenAI's own, at the same server.

Run: `python benchmarks/synthesize.py [--requests 800] [--concurrency 8] [--delay 0.05] [--rounds 3] [--peers PYTHON]`,
where PYTHON is that of an environment with `openai`. Takes half a minute.

The server (tests/shared/llm_server.py) is a process of its own that answers each request after `--delay` seconds, so
that `concurrency / delay` requests per second are the most that anybody can reach. Conan's client also keeps a budget
and writes each answer to a file, which it syncs. The two run in turn, each in a process of its own; the best of the
rounds counts, and the time begins once all is imported.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
PASSAGE = "长江全长六千三百余公里，是亚洲第一长河。第{number}次测量的结果与此相同。"


def main() -> None:
    """Run both in turn, and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help="a Python that has openai")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.url:
        ask_all(given.url, given.requests, given.concurrency)
        return
    sys.path.append(str(HERE.parent / "tests" / "shared"))
    from llm_server import llm_process

    commands = {"conan": [sys.executable, __file__]}
    if given.peers:
        commands["openai"] = [given.peers, HERE / "peers" / "synthesize.py"]
    best = dict.fromkeys(commands, 0.0)
    with tempfile.TemporaryDirectory() as folder, llm_process(Path(folder) / "log.jsonl", given.delay) as server:
        options = [f"--url={server.url}", f"--requests={given.requests}", f"--concurrency={given.concurrency}"]
        for _ in range(given.rounds):
            for name, command in commands.items():
                done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
                best[name] = max(best[name], given.requests / float(done.stdout))
        served = len(server.requests)
    assert served == given.requests * given.rounds * len(commands), served
    most = given.concurrency / given.delay
    for name, speed in best.items():
        print(f"{name:7} {speed:6.1f} requests per second, {speed / most:.1%} of the most possible")
    if given.peers:
        print(f"conan reaches {best['conan'] / best['openai']:.1%} of what openai does")


def ask_all(url: str, requests: int, concurrency: int) -> None:
    """Ask with Conan's client, and print the seconds that it took."""
    from conan_embedding.pipeline.llm_client.client import Budget, Request, ask
    from conan_embedding.pipeline.synthesize.prompts import RESPONSE_FORMAT, Draw, messages
    from conan_embedding.schemas.server_settings import ServerSettings

    draw = Draw("question", "zh", None, "easy", "short")
    bodies = (
        {
            "model": "served",
            "messages": messages(PASSAGE.format(number=number), draw),
            "temperature": 0.7,
            "max_tokens": 256,
            "response_format": RESPONSE_FORMAT,
        }
        for number in range(requests)
    )
    asked = [Request(body) for body in bodies]
    server = ServerSettings(url=url, model="served", concurrency=concurrency)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        answers = ask(asked, server, Budget(1e9), Path(folder) / "answers.jsonl", lambda *_: None).answers
        print(time.monotonic() - started)
    assert all(answer and "query" in answer.text for answer in answers)


if __name__ == "__main__":
    main()
