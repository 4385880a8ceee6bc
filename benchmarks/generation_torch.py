"""Greedy generation by Hugging Face transformers' LLaMA; imports no JAX. A process of `benchmarks.generation`."""

import json
import sys
import time
from collections.abc import Callable

import torch
import transformers


def serve(create: Callable) -> None:
    """Create a side from the JSON argument and answer the method names on stdin; everything else printed goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    side = create(**json.loads(sys.argv[-1]))
    for line in sys.stdin:
        print(json.dumps(getattr(side, line.strip())()), file=answers, flush=True)


class Side:
    """A network, and its times for one prompt."""

    def __init__(self, *, folder: str, sizes: dict | None, dtype: str, threads: int, device: str, prompt: list[int], most: int):
        """Read the network of a folder; one of random numbers with these `sizes` is written to it first."""
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        if sizes:
            random = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**sizes)).to(
                getattr(torch, dtype)
            )
            random.save_pretrained(folder)
            del random
        self._network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
        self._network.generation_config.eos_token_id = None
        self._prompt, self._most = torch.tensor([prompt]).to(device), most
        self.streamed()

    def streamed(self) -> dict:
        """Return the seconds until each new token, and the tokens."""
        clock = _Clock()
        settings = {"max_new_tokens": self._most, "do_sample": False, "pad_token_id": 0, "streamer": clock}
        start = time.perf_counter()
        tokens = self._network.generate(self._prompt, attention_mask=torch.ones_like(self._prompt), **settings)
        seconds = [moment - start for moment in clock.moments[1:]]
        return {"seconds": seconds, "tokens": tokens[0, self._prompt.shape[1] :].tolist()}

    def versions(self) -> dict:
        return {"torch": torch.__version__, "transformers": transformers.__version__}


class _Clock(transformers.generation.streamers.BaseStreamer):
    """Notes when the prompt and each token come."""

    def __init__(self):
        self.moments = []

    def put(self, value):
        self.moments.append(time.perf_counter())

    def end(self):
        pass


if __name__ == "__main__":
    serve(Side)
