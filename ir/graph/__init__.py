"""Graph IR: what is computed. Graphs, their builder, their verifier, and random inputs for them."""
