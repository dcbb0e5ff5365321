"""Evidence for early exit: every rule on real rows, beside baselines, in figures and pictures."""
