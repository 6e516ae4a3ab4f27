"""The peer of curation_dedup.py: datatrove's MinHash, as its users call it.

Run by curation_dedup.py among the peers' libraries; see pairs.py for how it is
driven.
"""

import argparse
import os
import sys
import tempfile

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline import dedup, readers, writers
from datatrove.pipeline.dedup import minhash
from loguru import logger

sys.path.insert(0, os.path.dirname(__file__))
import pairs  # noqa: E402


def _deduplicate(source: str, folder: str) -> None:
  """Runs the four steps of datatrove's own example, one process each."""
  config = minhash.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
  names = ('signatures', 'buckets', 'clusters', 'kept')
  signatures, buckets, clusters, kept = (f'{folder}/{n}' for n in names)
  steps = [
    [
      readers.ParquetReader(source),
      dedup.MinhashDedupSignature(output_folder=signatures, config=config),
    ],
    [
      dedup.MinhashDedupBuckets(
        input_folder=signatures, output_folder=buckets, config=config
      )
    ],
    [
      dedup.MinhashDedupCluster(
        input_folder=buckets, output_folder=clusters, config=config
      )
    ],
    [
      readers.ParquetReader(source),
      dedup.MinhashDedupFilter(input_folder=clusters),
      writers.ParquetWriter(kept),
    ],
  ]
  for number, step in enumerate(steps):
    # One task for each of the 14 buckets, as datatrove demands.
    tasks = config.num_buckets if number == 1 else 1
    LocalPipelineExecutor(
      step, tasks=tasks, workers=1, logging_dir=f'{folder}/logs/{number}'
    ).run()


def main() -> None:
  """Serves the unit of work."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', required=True)
  args = parser.parse_args()
  logger.remove()
  os.environ['DATATROVE_COLORIZE_LOGS'] = '0'

  def work() -> None:
    with tempfile.TemporaryDirectory() as folder:
      _deduplicate(args.folder, folder)

  pairs.serve(work, warm_up=1)


if __name__ == '__main__':
  main()
