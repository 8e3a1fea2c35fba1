"""Reading WebDataset shards into training batches; imports nothing else from `ldm`.

It is imported as ldm.data; in a checkout the folder lies at the top.
"""

if __name__ == "data":  # imported by the folder's name
    from ldm.data import old_name

    old_name.stand_in()
