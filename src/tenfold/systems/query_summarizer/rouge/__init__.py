"""ROUGE-1.5.5 without Perl: n-grams, skip-bigrams, limits, stemmer, jackknife, bootstrap, print format."""
