"""The smallest experiments that settle the paper's main claims."""

from dataclasses import replace

from tenfold.settling import MainClaim, Trial
from tenfold.systems.query_summarizer.experiment.settings import PRESETS, SparseOptions

TRIALS = {
    "query-summarizer": Trial(
        config=replace(
            PRESETS["small"],
            arms=["stage2", "both", "both-no-query", "sparse"],
            sparse=SparseOptions(fractions=[0.05], criteria=["fisher"], rates=[1.0, 3.0]),
        ),
        claims=(
            MainClaim("augmentation", effect=0.3, paper="augmentation with WikiRef helps on DUC 2005 to 2007"),
            MainClaim("query", effect=0.3, paper="the summary answers the query"),
            MainClaim(
                "sparse-equal", effect=0.3, paper="training a sparse subnetwork is as good as training all weights"
            ),
        ),
        looked_at="preset small with seeds 0 to 2",
    )
}
