"""How a flow map is learned: a loss is a sum of terms, a term is a rule on a law of times."""
