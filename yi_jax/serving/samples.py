"""What a model says to the prompts of a run's config."""

from typing import Any

from yi_jax.data import chatml, tokenizer
from yi_jax.models import config as model_config
from yi_jax.models import lora
from yi_jax.serving import generation

# Ours: lively enough not to repeat itself, small models do at 0.
TEMPERATURE, TOP_P = 0.7, 0.9


def make(
  config: Any,
  model: model_config.ModelConfig,
  params: dict[str, Any],
  words: tokenizer.Tokenizer,
) -> list[dict[str, str]]:
  """Returns how a model continues, or answers, the prompts of `config.sample`.

  Args:
    config: of the run.
    model: the model.
    params: its parameters, adapters among them if it has any.
    words: the tokenizer.

  Returns:
    Dicts of prompt and text.

  Raises:
    ValueError: if the tokenizer does not have the marks of the chat format.
  """
  stops = {words.eos_id, *words.stop_ids}
  if config.sample.chat:
    template = chatml.get(config.data.chat.template)
    rows = [
      chatml.render(
        template, [{'role': 'user', 'content': prompt}], words, generate=True
      ).ids
      for prompt in config.sample.prompts
    ]
    if template.end in words.special_ids:
      stops.add(words.special_ids[template.end])
  else:
    # Training rows begin a document after an end mark.
    rows = [
      [words.eos_id, *words.encode(prompt)] for prompt in config.sample.prompts
    ]
  generator = generation.Generator(
    model.replace(lora=None),
    lora.fold(params, model.lora),
    max_length=max(map(len, rows)) + config.sample.tokens,
    vocabulary_size=words.size,
  )
  made = generator.generate(
    rows,
    config.sample.tokens,
    temperature=TEMPERATURE,
    top_p=TOP_P,
    seed=config.seed,
    stop_ids=sorted(stops),
  )
  return [
    {'prompt': prompt, 'text': words.decode(ids)}
    for prompt, ids in zip(config.sample.prompts, made, strict=True)
  ]
