"""Entry-sparse fine-tuning of any model: choose entries, train them with sparse state, ship the diff, take it back.


    mask = find_mask(model, loss, examples, fraction=0.01, dense=["head.*"])   which entries matter
    tuner = SparseTuner(model, mask, dense=["head.*"])                          remembers the base at those entries
    optimizer = tuner.adamw(lr=1e-3)                                            state for the chosen entries only
    ...                                                                         any training loop
    tuner.save("customer.sft.safetensors")                                      values, positions, fingerprint
    with apply_diff(base, "customer.sft.safetensors"): ...                      exact, and exactly reverted

The names here load when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
