"""Average the weights of several checkpoints into one."""
