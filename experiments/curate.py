"""The cascade over the project's own sources, or over a crawl.

Stages and their order are those of the Yi report (arXiv:2403.04652, figure 1);
it publishes no thresholds, so those are of the works it cites, see docs/curate.md.

  launch/local.sh python -m yi_jax.curate \\
      --config=experiments/curate.py:quickstart

reads what the quickstart reads; `:sources` reads all sources of docs/prepare.md
(tweets, chats, reviews, news: noisier, so that the rules have something to do);
`:crawl` is for WET files of Common Crawl, and wants --config.inputs.web.files.

Then train on it:

  python -m yi_jax.prepare --config=experiments/quickstart.py:curated
  python -m yi_jax.train --config=experiments/quickstart.py:curated

Time and result on two CPU cores: see docs/curate.md.
"""

import ml_collections

from yi_jax.curation import cascade, run_config
from yi_jax.data import mixtures, sources

# What the report applies to pages of the web. Statutes, dictionaries and plays
# repeat themselves by nature, and are no pages: rules of that kind would remove
# four fifths of them; and what is news or ads among them is known.
_FOR_PAGES = (
  *('language', 'lists', 'rules', 'perplexity', 'coherence', 'safety'),
  'topics',
)


def get_config(arg: str = 'quickstart') -> ml_collections.ConfigDict:
  """Returns the run.

  Args:
    arg: 'quickstart', 'sources' or 'crawl'.
  """
  c = run_config.base(tuple(cascade.STAGES))
  if arg == 'quickstart':
    wanted = [
      mixtures.get(task).source for task in mixtures.MIXTURES['quickstart']
    ]
  elif arg == 'sources':
    wanted = list(sources.SOURCES)
  elif arg == 'crawl':
    c.inputs = {'web': {'files': 'data/crawl/*.warc.wet.gz', 'url': 'url'}}
    return c
  else:
    raise ValueError(f'no variant {arg!r}: quickstart, sources or crawl')
  for name in wanted:
    source = sources.get(name)
    c.inputs[name] = {'source': name, 'language': source.language}
    if source.kind != 'web':
      c.inputs[name]['skip'] = tuple(s for s in _FOR_PAGES if s in c.stages)
  # What all inputs pass by would only want its model.
  unused = set(c.stages)
  for entry in c.inputs.values():
    unused &= set(entry.get('skip', ()))
  if arg == 'quickstart':
    # It drops a share of the worst clusters, which here are no bad ones: a ninth
    # of the plays and sums would go.
    unused.add('clusters')
  c.stages = tuple(stage for stage in c.stages if stage not in unused)
  return c
