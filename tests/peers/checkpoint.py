"""transformers' LLaMA in folders: made and saved, or loaded; logits of each.

Given .npz: jobs, JSON of [{folder, config, form}], and tokens int[B, T]. With a
config a model with random parameters is saved to the folder, as safetensors
(`form` is the size of a shard) or as two `pytorch_model` files (`form` is
'bin'). Without one the folder is loaded. Written: logits_0, logits_1, ..., and
infos, JSON of {missing, unexpected, stop} for each.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers


def save_bin(state, folder):
  """Writes a state dict as transformers did before safetensors."""
  names = list(state)
  halves = names[: len(names) // 2], names[len(names) // 2 :]
  places = {}
  for i, half in enumerate(halves, start=1):
    file = f'pytorch_model-{i:05d}-of-00002.bin'
    torch.save({name: state[name] for name in half}, folder / file)
    places |= dict.fromkeys(half, file)
  text = json.dumps({'metadata': {}, 'weight_map': places})
  (folder / 'pytorch_model.bin.index.json').write_text(text)


def make(config, folder, form):
  """Saves a model whose every parameter is random, and returns it."""
  config = transformers.LlamaConfig(**config)
  config._attn_implementation = 'eager'
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for name, x in model.named_parameters():
      x.normal_(float('norm' in name), 0.2)
  if form != 'bin':
    model.save_pretrained(folder, max_shard_size=form)
    return model
  folder.mkdir()
  model.config.save_pretrained(folder)
  state = model.state_dict()
  if config.tie_word_embeddings:
    del state['lm_head.weight']
  save_bin(state, folder)
  return model


def load(folder):
  """Returns the model of a folder, and what of it did not fit."""
  model, info = transformers.LlamaForCausalLM.from_pretrained(
    folder,
    dtype=torch.float32,
    attn_implementation='eager',
    output_loading_info=True,
  )
  return model.eval(), {
    'missing': sorted(info['missing_keys']),
    'unexpected': sorted(info['unexpected_keys']),
    'stop': model.generation_config.eos_token_id,
  }


given = np.load(sys.argv[1])
tokens = torch.tensor(given['tokens'])
torch.manual_seed(0)
written, infos = {}, []
for i, job in enumerate(json.loads(str(given['jobs']))):
  place = pathlib.Path(job['folder'])
  if job['config']:
    found, facts = make(job['config'], place, job['form']), None
  else:
    found, facts = load(place)
  with torch.no_grad():
    written[f'logits_{i}'] = found(tokens).logits.numpy()
  infos.append(facts)
np.savez(sys.argv[2], infos=np.array(json.dumps(infos)), **written)
