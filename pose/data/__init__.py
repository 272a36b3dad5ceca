"""From an archive to the batches a network sees."""
