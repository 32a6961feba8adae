"""How answers are judged: the official accuracies, recall, intervals."""
