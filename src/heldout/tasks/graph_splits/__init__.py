"""Filing of heldout.tasks: which nodes or graphs to train on, and which to be tested on."""
