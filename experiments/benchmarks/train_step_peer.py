"""The peer of train_step.py: transformers' LLaMA and PyTorch's AdamW.

Run by train_step.py among the peers' libraries; see pairs.py for how it is
driven. The model has the sizes of `tiny`, attention is PyTorch's own (sdpa,
causal, without segments), AdamW is fused, gradients are clipped.
"""

import argparse
import contextlib
import os
import sys

import torch
import transformers

sys.path.insert(0, os.path.dirname(__file__))
import pairs  # noqa: E402


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--rows', type=int, required=True)
  parser.add_argument('--length', type=int, required=True)
  parser.add_argument('--bf16', action='store_true')
  parser.add_argument('--compile', action='store_true')
  parser.add_argument('--model', type=str, required=True, help='k=v,k=v')
  args = parser.parse_args()
  sizes = dict(pair.split('=') for pair in args.model.split(','))
  config = transformers.LlamaConfig(
    **{name: int(size) for name, size in sizes.items()},
    tie_word_embeddings=False,
    use_cache=False,
  )
  config._attn_implementation = 'sdpa'
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(config).train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
  )
  tokens = torch.randint(0, config.vocab_size, (args.rows, args.length))
  forward = torch.compile(model) if args.compile else model

  def step() -> None:
    cast = (
      torch.autocast('cpu', torch.bfloat16)
      if args.bf16
      else contextlib.nullcontext()
    )
    with cast:
      loss = forward(tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()

  pairs.serve(step)


if __name__ == '__main__':
  main()
