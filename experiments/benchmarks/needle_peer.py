"""The peer of needle.py: transformers, each cell in full.

A row is read once; values are scored and the answer is written from its cache,
cropped in between. Run by needle.py among the peers' libraries; see pairs.py for
how it is driven.
"""

import argparse
import json
import os
import pathlib
import re
import sys

import torch
import transformers

sys.path.insert(0, os.path.dirname(__file__))
import pairs  # noqa: E402

# The same end of an answer as yi_jax/evaluation/scoring.py.
_END = re.compile(r'[.!?]\s|[.!?]$|[\n。！？]')


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', required=True)
  folder = pathlib.Path(parser.parse_args().folder)
  grid = json.loads((folder / 'grid.json').read_text())
  texts = {int(k): v for k, v in grid['texts'].items()}
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder / 'model', dtype=torch.float32
  ).eval()

  @torch.inference_mode()
  def score(cell: dict) -> dict:
    *row, last = cell['row']
    cache = transformers.DynamicCache(config=model.config)
    # No logits of the prompt are needed: one row of them is the least.
    model(torch.tensor([row]), past_key_values=cache, logits_to_keep=1)
    logprobs = []
    for ids in cell['values']:
      text = torch.tensor([[last, *ids]])
      logits = model(text, past_key_values=cache).logits[0, :-1]
      chosen = torch.log_softmax(logits, -1).gather(1, text[0, 1:, None])
      logprobs.append(float(chosen.sum()))
      cache.crop(-text.shape[1])
    ids, pending = [], last
    while len(ids) < cell['room']:
      logits = model(torch.tensor([[pending]]), past_key_values=cache).logits
      pending = int(logits[0, -1].argmax())
      if pending in grid['stop_ids']:
        break
      ids.append(pending)
      if _END.search(''.join(texts.get(i, '?') for i in ids)):
        break
    answer = ''.join(texts.get(i, '?') for i in ids)
    return {'logprobs': logprobs, 'answer': answer}

  def work() -> None:
    found = {cell['name']: score(cell) for cell in grid['cells']}
    read = sum(len(cell['row']) for cell in grid['cells'])
    facts = {'read': read, 'cells': found}
    (folder / 'transformers.json').write_text(json.dumps(facts))

  first = grid['cells'][0]
  score({**first, 'row': first['row'][:700]})
  pairs.serve(work, warm_up=0)


if __name__ == '__main__':
  main()
