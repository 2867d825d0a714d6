"""Official evaluation protocols: MS MARCO and DPR."""
