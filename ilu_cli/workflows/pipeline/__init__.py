"""`ilu pipeline` and `ilu attack --suite`: a graph of runs, its execution, and the table of its outcomes."""
