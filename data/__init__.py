"""Reading WebDataset shards into training batches; imports nothing from `ldm`."""
