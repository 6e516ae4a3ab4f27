"""The peer of sft.py: PEFT's LoRA on transformers' LLaMA, as its users train.

Run by sft.py among the peers' libraries; see pairs.py for how it is driven. The
loss is transformers' own, from labels; NEFTune's noise is added by a hook, as its
trainer does. No dropout, like on the other side.
"""

import argparse
import json
import os
import sys

import peft
import torch
import transformers

sys.path.insert(0, os.path.dirname(__file__))
import pairs  # noqa: E402


def _padded(chats: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
  """Returns a batch, padded on the right to its longest."""
  longest = max(len(chat['ids']) for chat in chats)
  shape = len(chats), longest
  batch = {
    'input_ids': torch.zeros(shape, dtype=torch.long),
    'attention_mask': torch.zeros(shape, dtype=torch.long),
    'labels': torch.full(shape, -100),
  }
  for i, chat in enumerate(chats):
    size = len(chat['ids'])
    batch['input_ids'][i, :size] = torch.tensor(chat['ids'])
    batch['attention_mask'][i, :size] = 1
    batch['labels'][i, :size] = torch.tensor(chat['labels'])
  return batch


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', required=True)
  parser.add_argument('--at_once', type=int, required=True)
  parser.add_argument('--rank', type=int, required=True)
  parser.add_argument('--alpha', type=float, required=True)
  parser.add_argument('--rate', type=float, required=True)
  parser.add_argument('--neftune', type=float, required=True)
  args = parser.parse_args()
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    f'{args.folder}/model', dtype=torch.float32
  )
  model.config.use_cache = False
  settings = peft.LoraConfig(
    r=args.rank,
    lora_alpha=args.alpha,
    target_modules=[
      *(f'{name}_proj' for name in ('q', 'k', 'v', 'o')),
      *(f'{name}_proj' for name in ('gate', 'up', 'down')),
    ],
    task_type='CAUSAL_LM',
  )
  model = peft.get_peft_model(model, settings).train()

  def noisy(module, inputs, output):
    del module
    length, width = output.shape[1:]
    bound = args.neftune / (length * width) ** 0.5
    return output + torch.empty_like(output).uniform_(-bound, bound)

  model.get_input_embeddings().register_forward_hook(noisy)
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(
    trained, lr=args.rate, betas=(0.9, 0.999), weight_decay=0.1
  )
  with open(f'{args.folder}/work.json') as file:
    work = iter(json.load(file))

  def step() -> None:
    chats = sorted(next(work), key=lambda chat: len(chat['ids']))
    total = sum(label != -100 for chat in chats for label in chat['labels'])
    at_once = args.at_once or len(chats)
    loss = 0.0
    for first in range(0, len(chats), at_once):
      batch = _padded(chats[first : first + at_once])
      part = model(**batch, num_items_in_batch=total).loss
      part.backward()
      loss += part.item()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    print(f'loss {loss:.4f}', file=sys.stderr, flush=True)

  pairs.serve(step, warm_up=1)


if __name__ == '__main__':
  main()
