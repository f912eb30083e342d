"""What the model reads. Not covered yet: there are no prompts before there is a proposer that needs them."""
