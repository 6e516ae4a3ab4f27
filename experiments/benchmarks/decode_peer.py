"""The peer of decode.py: transformers' generate, as its users call it.

Run by decode.py among the peers' libraries; see pairs.py for how it is driven.
"""

import argparse
import os
import sys

import torch
import transformers

sys.path.insert(0, os.path.dirname(__file__))
import pairs  # noqa: E402


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', required=True)
  parser.add_argument('--batches', required=True)
  parser.add_argument('--length', type=int, required=True)
  parser.add_argument('--new', type=int, required=True)
  args = parser.parse_args()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    args.folder, dtype=torch.float32
  ).eval()

  def unit(batch: int, tokens: int):
    torch.manual_seed(0)
    prompts = torch.randint(100, model.config.vocab_size, (batch, args.length))

    @torch.inference_mode()
    def work() -> None:
      made = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=0,
      )
      assert made.shape == (batch, args.length + tokens)

    return work

  units = {}
  for batch in map(int, args.batches.split(',')):
    units[f'prefill {batch}'] = unit(batch, 1)
    units[f'generate {batch}'] = unit(batch, args.new)
  pairs.serve(units, warm_up=1)


if __name__ == '__main__':
  main()
