"""Building blocks of ranking models: embeddings, interactions, gates, towers."""
