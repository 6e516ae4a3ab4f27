"""Makes the checkpoint beside it with PyTorch, so that tests do not need it.

  launch/local.sh peer python tests/checkpoints/golden/make.py

A LLaMA of 7,000 random parameters in bfloat16, as `pytorch_model.bin` with all
that such files may hold: parameters, views of one storage, a transposed one,
and a buffer; and transformers' float32 logits of the last 40 of 520 tokens.
"""

import pathlib

import numpy as np
import torch
import transformers

folder = pathlib.Path(__file__).parent
torch.manual_seed(0)
config = transformers.LlamaConfig(
  vocab_size=80,
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=1,
  num_attention_heads=3,
  num_key_value_heads=1,
  head_dim=8,
  rope_theta=5e6,
  rms_norm_eps=1e-5,
  max_position_embeddings=600,
  architectures=['LlamaForCausalLM'],
  dtype='bfloat16',
)
config._attn_implementation = 'eager'
model = transformers.LlamaForCausalLM(config).eval()
with torch.no_grad():
  for name, x in model.named_parameters():
    x.normal_(float('norm' in name), 0.2)
    x.copy_(x.to(torch.bfloat16))
  tokens = torch.randint(80, (1, 520))
  logits = model(tokens).logits

state = {name: x.to(torch.bfloat16) for name, x in model.state_dict().items()}
layer = 'model.layers.0.'
# Two views of one storage, the second with an offset.
both = torch.cat(
  [state[f'{layer}mlp.gate_proj.weight'], state[f'{layer}mlp.up_proj.weight']]
)
state[f'{layer}mlp.gate_proj.weight'] = both[:40]
state[f'{layer}mlp.up_proj.weight'] = both[40:]
# Columns where rows are expected.
down = state[f'{layer}mlp.down_proj.weight']
state[f'{layer}mlp.down_proj.weight'] = down.t().contiguous().t()
state['model.norm.weight'] = torch.nn.Parameter(state['model.norm.weight'])
state[f'{layer}self_attn.rotary_emb.inv_freq'] = torch.ones(4)
torch.save(state, folder / 'pytorch_model.bin')
config.save_pretrained(folder)
np.savez_compressed(
  folder / 'logits.npz', tokens=tokens.numpy(), logits=logits[:, -40:].numpy()
)
