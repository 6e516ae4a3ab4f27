"""transformers' LLaMA on a GGUF file, unpacked and mapped independently of us.

Given .npz: path, tokens int[1, T], text int[1, P]. Written: logits [T, V] of the
tokens in float32, and best [P], the likeliest token after each of the text.
"""

import sys

import gguf
import numpy as np
import torch
import transformers

given = dict(np.load(sys.argv[1]))
reader = gguf.GGUFReader(str(given['path']))


def field(name):
  return reader.fields[f'llama.{name}'].contents()


heads, groups = field('attention.head_count'), field('attention.head_count_kv')
config = transformers.LlamaConfig(
  vocab_size=field('vocab_size'),
  hidden_size=field('embedding_length'),
  intermediate_size=field('feed_forward_length'),
  num_hidden_layers=field('block_count'),
  num_attention_heads=heads,
  num_key_value_heads=groups,
  rms_norm_eps=field('attention.layer_norm_rms_epsilon'),
  rope_parameters={
    'rope_type': 'default',
    'rope_theta': field('rope.freq_base'),
  },
  max_position_embeddings=field('context_length'),
  tie_word_embeddings=True,
)
config._attn_implementation = 'eager'
names = {'token_embd': 'embed_tokens', 'output_norm': 'norm', 'blk': 'layers'}
for part, name in dict(q='q', k='k', v='v', output='o').items():
  names[f'attn_{part}'] = f'self_attn.{name}_proj'
for part in ('gate', 'up', 'down'):
  names[f'ffn_{part}'] = f'mlp.{part}_proj'
names['attn_norm'] = 'input_layernorm'
names['ffn_norm'] = 'post_attention_layernorm'
state = {}
for tensor in reader.tensors:
  x = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
  for part, count in (('attn_q', heads), ('attn_k', groups)):
    if part in tensor.name:
      half = len(x) // count // 2
      order = [
        head * half * 2 + 2 * i + odd
        for head in range(count)
        for odd in (0, 1)
        for i in range(half)
      ]
      x = x[order]
  name = '.'.join(names.get(part, part) for part in tensor.name.split('.'))
  state[f'model.{name}'] = torch.tensor(x)
with torch.device('meta'):  # no random weights
  model = transformers.LlamaForCausalLM(config).eval()
state['lm_head.weight'] = state['model.embed_tokens.weight']
model.load_state_dict(state, assign=True)
# A buffer that no checkpoint holds.
model.model.rotary_emb = type(model.model.rotary_emb)(config)
with torch.no_grad():
  logits = model(torch.tensor(given['tokens'])).logits[0]
  best = model(torch.tensor(given['text'])).logits[0].argmax(-1)
np.savez(sys.argv[2], logits=logits.numpy(), best=best.numpy())
