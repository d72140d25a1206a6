"""What do unlabelled examples teach? Pseudo labels, consistency, and a policy that proposes labels."""
