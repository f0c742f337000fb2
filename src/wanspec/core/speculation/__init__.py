"""WHAT is drafted and accepted: ids, the draft tree, the verification walk, coupled sampling, entropy."""
