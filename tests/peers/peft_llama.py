"""PEFT's LoRA on transformers' LLaMA: made and saved, or loaded; logits of each.

Given .npz: jobs, JSON of [{model, config, adapter, lora}], and tokens
int[B, T]. With a config, a model with random parameters is saved to the folder
`model`, and on it a random adapter with the settings `lora` to the folder
`adapter`. Without one both are loaded. Written: logits_0, logits_1, ... of the
adapted models.
"""

import json
import sys
import warnings

import numpy as np
import peft
import torch
import transformers

# Else it would only warn.
warnings.filterwarnings('error', message='Found missing adapter keys')


def make(job):
  """Saves a model and an adapter, and returns them together."""
  config = transformers.LlamaConfig(**job['config'])
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for name, x in model.named_parameters():
      x.normal_(float('norm' in name), 0.2)
  model.save_pretrained(job['model'])
  settings = peft.LoraConfig(task_type='CAUSAL_LM', **job['lora'])
  adapted = peft.get_peft_model(model, settings).eval()
  with torch.no_grad():
    for name, x in adapted.named_parameters():
      if 'lora_' in name:
        x.normal_(0, 0.2)
  # Nothing but the adapter, also where it is on lm_head.
  adapted.save_pretrained(job['adapter'], save_embedding_layers=False)
  return adapted


def load(job):
  """Returns a saved model with a saved adapter."""
  model = transformers.LlamaForCausalLM.from_pretrained(
    job['model'], dtype=torch.float32
  )
  return peft.PeftModel.from_pretrained(model, job['adapter']).eval()


given = np.load(sys.argv[1])
tokens = torch.tensor(given['tokens'])
torch.manual_seed(0)
written = {}
for i, job in enumerate(json.loads(str(given['jobs']))):
  found = make(job) if job.get('config') else load(job)
  with torch.no_grad():
    written[f'logits_{i}'] = found(tokens).logits.numpy()
np.savez(sys.argv[2], **written)
