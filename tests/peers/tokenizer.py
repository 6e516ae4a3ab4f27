"""transformers' AutoTokenizer on saved folders: ids of texts and of chats.

Given .npz: jobs, JSON of [{folder, texts, chats}]; a chat is {conversation,
add_generation_prompt}. Written: found, JSON of a {texts, plain, decoded, chats,
eos} for each: ids of the texts by default and without special tokens, what they
decode to, and ids of the chats by the template of the folder.
"""

import json
import sys

import numpy as np
import transformers

found = []
for job in json.loads(str(np.load(sys.argv[1])['jobs'])):
  tokenizer = transformers.AutoTokenizer.from_pretrained(job['folder'])
  ids = [tokenizer.encode(text) for text in job['texts']]
  found.append(
    {
      'texts': ids,
      'plain': [
        tokenizer.encode(text, add_special_tokens=False)
        for text in job['texts']
      ],
      'decoded': [tokenizer.decode(row) for row in ids],
      'chats': [
        tokenizer.apply_chat_template(**chat, return_dict=False)
        for chat in job['chats']
      ],
      'eos': tokenizer.eos_token_id,
    }
  )
np.savez(sys.argv[2], found=json.dumps(found))
