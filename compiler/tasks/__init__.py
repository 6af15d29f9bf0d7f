"""What the model in a checkpoint directory is for, read from its JSON files.

Neither PyTorch nor transformers is loaded, so that a compile whose capture is cached needs neither.

`kinds` names the task and the class, `sentences` reads how an embedder pools, `preparation` how images are
made, `entry` joins them to what the manifest says.
"""
