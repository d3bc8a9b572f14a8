"""Makes published.npz: slices of the published models' outputs, with few channels. Needs the parity extra.

PYTHONPATH=.:tests python tests/golden/make_published.py
"""

import pathlib

import numpy as np
import torch
from golden import published
from models.test_zoo import DISTINCT, LIVE
from models.test_zoo import narrow as ours

if __name__ == "__main__":
    slices = {}
    torch.set_num_threads(2)
    for name in (n for n in LIVE if n in DISTINCT):
        model, variables, images = ours(name)
        theirs = published.load(published.narrow(name), model, variables).eval()
        features = published.features_of(theirs)
        found = published.hooked(theirs, features.values())
        with torch.no_grad():
            logits, aux = published.run(theirs, images)
            print(f"{name}: {tuple(logits.shape)}, standard deviation {logits.std():.2f}")
            slices[name] = logits.numpy()[:, ::5, ::7]
            if aux is not None:
                slices[f"{name} aux"] = aux.numpy()[:, ::5, ::7]
            slices |= {
                f"{name} {feature}": found[module][:, ::3, ::5, :3]
                for feature, module in features.items()
                if module in found
            }
            slices[f"{name} train"] = published.run(theirs.train(), images)[0].numpy()[:, ::5, ::7]
        slices[f"{name} statistics"] = np.concatenate([a[:2] for a in published.statistics(theirs, model)])
    np.savez_compressed(pathlib.Path(__file__).with_name("published.npz"), **slices)
