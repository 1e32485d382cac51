"""How good models are: likelihoods, the attribute classifier, embeddings, edits, and the table of it all.

What this room imports: `errors`, `models`, `data`, `training`, `sampling`.
"""
