"""transformers' rotation of given [B, T, N, H] at given positions."""

import json
import sys

import numpy as np
import torch
from transformers.models.llama import modeling_llama as llama

given = np.load(sys.argv[1])
x = torch.tensor(given['x']).transpose(1, 2)
positions = torch.tensor(given['positions'])
config = llama.LlamaConfig(
  hidden_size=x.shape[1] * x.shape[3],
  num_attention_heads=x.shape[1],
  head_dim=x.shape[3],
  rope_parameters=json.loads(str(given['rope'])),
  max_position_embeddings=4096,
)
cos, sin = llama.LlamaRotaryEmbedding(config)(x, positions)
turned, _ = llama.apply_rotary_pos_emb(x, x, cos, sin)
np.savez(
  sys.argv[2],
  turned=turned.transpose(1, 2).numpy(),
  cos=cos.numpy(),
  sin=sin.numpy(),
)
