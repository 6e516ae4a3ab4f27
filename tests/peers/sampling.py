"""transformers' scores for the next token, each row with its own settings."""

import sys

import numpy as np
import torch
from transformers.generation import logits_process

given = np.load(sys.argv[1])
warped = []
for i, row in enumerate(given['scores']):
  scores = torch.tensor(row)[None]
  seen = torch.tensor(np.flatnonzero(given['seen'][i]))[None]
  processors = logits_process.LogitsProcessorList()
  penalty, top_k = float(given['repetition_penalty'][i]), int(given['top_k'][i])
  temperature, top_p = float(given['temperature'][i]), float(given['top_p'][i])
  if penalty != 1:
    processors.append(logits_process.RepetitionPenaltyLogitsProcessor(penalty))
  if temperature != 1:
    processors.append(logits_process.TemperatureLogitsWarper(temperature))
  if top_k:
    processors.append(logits_process.TopKLogitsWarper(top_k))
  if top_p < 1:
    processors.append(logits_process.TopPLogitsWarper(top_p))
  warped.append(processors(seen, scores)[0].numpy())
np.savez(sys.argv[2], warped=np.stack(warped))
