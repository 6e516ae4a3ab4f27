"""transformers' LLaMA on given weights: logits, and gradients of their sum.

Given .npz: config (JSON as a string), tokens int[B, T], the weights under
LLaMA's names and shapes ([out, in]), and cotangent [B, T, V] to weight the
logits with. Written: logits, and a gradient under each weight's name.
"""

import json
import sys

import numpy as np
import torch
import transformers

given = dict(np.load(sys.argv[1]))
config = transformers.LlamaConfig(**json.loads(str(given.pop('config'))))
config._attn_implementation = 'eager'
tokens = torch.tensor(given.pop('tokens'))
cotangent = torch.tensor(given.pop('cotangent'))
model = transformers.LlamaForCausalLM(config).eval()
state = {name: torch.tensor(x) for name, x in given.items()}
missing, unexpected = model.load_state_dict(state, strict=False)
assert not unexpected, unexpected
assert set(missing) <= {'lm_head.weight'}, missing
logits = model(tokens).logits
(logits * cotangent).sum().backward()
np.savez(
  sys.argv[2],
  logits=logits.detach().numpy(),
  **{name: p.grad.numpy() for name, p in model.named_parameters()},
)
