"""Reading WebDataset shards into training batches; imports nothing else from `ldm`.

It is ldm.data; the folder stands at the top of a checkout.
"""

if __name__ == "data":  # by the folder's name
    from ldm.data import old_name

    old_name.stand_in()
