"""Serve a Hugging Face model behind an OpenAI-compatible interface, for real runs of `conan synthesize` without a GPU.

    python benchmarks/serve_model.py MODEL --port 8000 --batch 8

`transformers serve` needs FastAPI, Uvicorn and a chat template, which base models lack. Here the requests that wait are
answered as one batch, and a model without a template gets the messages as plain text, whose continuation ends where the
prompt's next example would begin. `response_format` is ignored: nothing holds the model to the schema.
"""

import argparse
import json
import time
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from threading import Thread
from typing import Any

import torch
from measures import PRECISION
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

NEXT_EXAMPLE = ("<passage>", "\n\n")
TAIL = 8
"""Chosen here: tokens that hold any of NEXT_EXAMPLE."""
WAIT = 0.02
"""Chosen here: seconds in which the requests of a batch come together."""

Waiting = tuple[dict[str, Any], "Future[dict[str, Any]]"]


class AtNextExample(StoppingCriteria):
    """Ends an answer where the next example would begin; transformers' `stop_strings` first looks at all tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        tails = self.tokenizer.batch_decode(tokens[:, -TAIL:])
        return torch.tensor([any(sign in tail for sign in NEXT_EXAMPLE) for tail in tails])


class Model:
    """A model, and the requests that wait for it."""

    def __init__(self, folder: str, batch: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        dtype = torch.bfloat16 if PRECISION == "bf16" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.stop = StoppingCriteriaList([AtNextExample(self.tokenizer)])
        self.batch, self.waiting = batch, Queue[Waiting]()

    def run(self) -> None:
        """Answer what waits, a batch at a time; requests of one batch share the sampling of the first."""
        while True:
            batch = [self.waiting.get()]
            time.sleep(WAIT)
            while len(batch) < self.batch:
                try:
                    batch.append(self.waiting.get_nowait())
                except Empty:
                    break
            try:
                answers = self.answer([request for request, _ in batch])
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)

    @torch.inference_mode()
    def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tokens = self.tokenizer([self.prompt(each["messages"]) for each in requests], return_tensors="pt", padding=True)
        first, width = requests[0], tokens["input_ids"].shape[1]
        temperature = float(first.get("temperature", 1.0))
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        torch.manual_seed(int(first.get("seed") or 0))
        made = self.model.generate(
            **tokens,
            **sampling,
            max_new_tokens=int(first.get("max_tokens") or 128),
            stopping_criteria=None if self.tokenizer.chat_template else self.stop,
        )[:, width:]
        answers = []
        for prompt, answer in zip(tokens["attention_mask"].sum(1).tolist(), made, strict=True):
            text = self.tokenizer.decode(answer, skip_special_tokens=True)
            length = int((answer != self.tokenizer.pad_token_id).sum())
            usage = {"prompt_tokens": prompt, "completion_tokens": length, "total_tokens": prompt + length}
            answers.append({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})
        return answers

    def prompt(self, messages: list[dict[str, str]]) -> str:
        if self.tokenizer.chat_template:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return "\n".join(message["content"] for message in messages)


class Handler(BaseHTTPRequestHandler):
    model: Model
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        future: Future[dict[str, Any]] = Future()
        self.model.waiting.put((json.loads(self.rfile.read(int(self.headers["Content-Length"]))), future))
        try:
            status, body = 200, future.result()
        except Exception as error:
            status, body = 500, {"error": {"message": str(error)}}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8, help="requests at a time")
    given = parser.parse_args()
    Handler.model = Model(given.model, given.batch)
    Thread(target=Handler.model.run, daemon=True).start()
    with ThreadingHTTPServer(("127.0.0.1", given.port), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
