"""How kernels are timed and what they are held against: bounds, peaks of the card, results."""
