"""Explore while ranking: order films by predicted stars plus a multiple of their uncertainty (upper confidence bound).

A recommender that only exploits shows the same films again and again. What is estimated here is the spread of an
ensemble, which is large where few ratings were seen; the bound costs one pass of one member per film.
"""

import torch

from uncertainty_common import ratings_with_ensemble_uncertainty


def main(beta=3.0, shown=10):
    """Rank all films for one user with and without the bound; how many of those shown are new."""
    data, served = ratings_with_ensemble_uncertainty()
    films = data.model_facts["sizes"]["movie"]
    one = data.example
    slate = {name: values[:1].expand(films, *values.shape[1:]).clone() for name, values in one.items()}
    slate["movie"] = torch.arange(films)  # genres stay those of the first film: a real slate looks them up
    stars, uncertainty = served(**slate)
    by_score = stars.argsort(descending=True)[:shown].tolist()
    by_bound = (stars + beta * uncertainty).argsort(descending=True)[:shown].tolist()
    new = [film for film in by_bound if film not in by_score]
    print(f"by score:               films {by_score}")
    print(f"by score + {beta} sigma:    films {by_bound}; {len(new)} explored")
    return by_score, by_bound, uncertainty


if __name__ == "__main__":
    main()
