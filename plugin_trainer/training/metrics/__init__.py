"""What is measured of training and of evaluations."""
