"""What do rewards teach? Rollouts, rewards and GRPO."""
