"""Reference semantics in NumPy: interpreters of graphs, tile programs and plans."""
