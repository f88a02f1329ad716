"""`ilu taskvec` and `ilu taskvec apply`: task vectors found by lineage, compared, and added."""
